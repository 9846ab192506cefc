"""A worker that takes over what dead ones held, while Redis answers in part, late or not at all."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from servers.queue import PARTITIONS, Queue

from fedsvc.background import end
from fedsvc.domain.classify import Outcome, Verdict
from fedsvc.domain.delivery import Priority, Reason
from fedsvc.domain.keys import PrivateKey
from fedsvc.domain.knock import Dialect
from fedsvc.domain.message import Message
from fedsvc.errors import QueueUnavailable
from fedsvc.handlers.registry import Registry
from fedsvc.queue.consumer import Admitted, Consumer, Handed
from fedsvc.worker.affinity import Affinity
from fedsvc.worker.beats import Beats
from fedsvc.worker.caches import KeyCache, MessageCache
from fedsvc.worker.metrics import Metrics
from fedsvc.worker.processor import Processor
from fedsvc.worker.reactions import Reactions
from fedsvc.worker.retry_manager import RetryManager

TAKEN = Verdict(Outcome.DELIVERED, Reason.OK, 202)


@dataclass(frozen=True)
class Took:
    verdict: Verdict = TAKEN
    latency_ms: int = 1
    learnt: Dialect = Dialect.UNKNOWN


class Inboxes:
    """Take everything, while they are open."""

    def __init__(self) -> None:
        self.got: list[str] = []
        self.open = asyncio.Event()
        self.open.set()

    async def deliver(
        self,
        message: Message,
        inbox: str,
        key: PrivateKey,
        priority: Priority,
        dialect: Dialect,
        sent: Callable[[], None],
    ) -> Took:
        self.got.append(message.activity_id)
        sent()
        await self.open.wait()
        return Took()


class AnyKey(KeyCache):
    def __init__(self) -> None:
        """Nothing is signed here."""
        #: how often it is to be away
        self.away = 0

    def held(self, key: str) -> PrivateKey | None:
        return None if self.away else object()  # type: ignore[return-value]

    async def get(self, key: str) -> PrivateKey:
        self.away -= 1
        raise QueueUnavailable("the shard of the keys is away")


class Troubled(Consumer):
    """What happens to its calls of `reclaim`, by partition."""

    lost: frozenset[int] = frozenset()
    refused: frozenset[int] = frozenset()
    late: frozenset[int] = frozenset()
    #: those of which also what is found of ours comes late
    slow: frozenset[int] = frozenset()
    #: those that hand out and say nothing, and do not answer
    away: frozenset[int] = frozenset()

    def __init__(self, queue: Queue) -> None:
        super().__init__(queue.link, queue.keys, queue.settings, "live")
        self.waits = asyncio.Event()
        self.go_on = asyncio.Event()
        self.recovered = 0
        #: how often each partition was asked for work
        self.asked: Counter[int] = Counter()

    async def keep(self, partition: int) -> None:
        if partition in self.away:
            raise QueueUnavailable("this shard is away")
        await super().keep(partition)

    async def recover(self, partition: int, limit: int, *, for_ms: int = 0) -> list[Admitted]:
        self.recovered += 1
        found = await super().recover(partition, limit, for_ms=for_ms)
        if partition in self.slow:
            self.waits.set()
            await self.go_on.wait()
        return found

    async def reclaim(self, partition: int, limit: int) -> list[Admitted]:
        if partition in self.refused:
            raise QueueUnavailable("this shard is away")
        taken = await super().reclaim(partition, limit)
        if partition in self.late:
            self.waits.set()
            await self.go_on.wait()
        if partition in self.lost:
            raise QueueUnavailable("the answer did not arrive")
        return taken

    async def admit(self, partition: int, *args: Any, **more: Any) -> Handed:
        self.asked[partition] += 1
        handed = await super().admit(partition, *args, **more)
        if partition in self.away:
            raise QueueUnavailable("this shard is away")
        if partition in self.late:
            self.waits.set()
            await self.go_on.wait()
        return handed


class Team:
    """A worker has died with one delivery in its hands; another lives."""

    def __init__(self, queue: Queue) -> None:
        settings, handlers = queue.settings, Registry.built_in()
        self.mine = queue.partition_of(0)
        self.others = frozenset(range(PARTITIONS)) - {self.mine}
        self.inboxes = Inboxes()
        self.consumer = Troubled(queue)
        affinity = Affinity("live", PARTITIONS)
        self.beats = beats = Beats("consume", "settle", "promote", "reclaim")
        self.keys = AnyKey()
        self.processor = Processor(
            settings, self.consumer, self.inboxes, MessageCache(self.consumer, 10_000), self.keys, beats,
            Metrics(), handlers, Reactions(handlers), affinity,
        )  # fmt: skip
        self.retries = RetryManager(settings, self.consumer, self.processor, affinity, beats)


@asynccontextmanager
async def working(queue: Queue, holder: str = "dead") -> AsyncIterator[Team]:
    await queue.enqueue("x")
    assert len(await queue.admit(1, holder)) == 1
    await queue.pass_time(60_000)
    team = Team(queue)
    loops = [asyncio.create_task(loop) for loop in (team.processor.run(), team.processor.settler.run())]
    try:
        yield team
    finally:
        team.processor.stop()
        await end(loops)


async def delivered(queue: Queue) -> None:
    async with asyncio.timeout(10):
        while (await queue.conserved()).counter("delivered") < 1:
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("trouble", ["the answer is lost", "the other partitions are away"])
async def test_what_was_taken_over_is_found_whatever_becomes_of_the_answers(
    queue: Queue, trouble: str
) -> None:
    async with working(queue) as team:
        if trouble == "the answer is lost":
            team.consumer.lost = frozenset({team.mine})
        else:
            team.consumer.refused = team.others
        with pytest.raises(QueueUnavailable):
            await team.retries._reclaim_all()
        await delivered(queue)


async def test_what_was_taken_over_is_not_sent_twice_because_another_partition_is_slow(queue: Queue) -> None:
    async with working(queue) as team:
        team.consumer.late = team.others
        taking = asyncio.create_task(team.retries._reclaim_all())
        await team.consumer.waits.wait()
        team.processor.doubtful.add(team.mine)
        await delivered(queue)
        team.consumer.go_on.set()
        await taking
        async with asyncio.timeout(10):
            while team.processor.in_flight:
                await asyncio.sleep(0.01)
        assert team.inboxes.got == ["https://me.example/x"]


async def test_what_redis_has_with_a_live_worker_that_has_ended_it_is_tried_again(queue: Queue) -> None:
    """As when Redis has lost the last second of what it was told."""
    async with working(queue, holder="live") as team:
        await team.retries._reclaim_all()
        stream = queue.keys.partition(team.mine).ready(Priority.URGENT)
        ((entry, *_),) = await queue.link.call("XPENDING", stream, "workers", "-", "+", 10)
        long_ms = int(queue.settings.lease * 1000)
        await queue.link.call("XCLAIM", stream, "workers", "live", 0, entry, "IDLE", long_ms)
        assert await team.retries._reclaim_all() == 0, "its end may be on its way"
        assert await team.retries._reclaim_all() == 1
        await delivered(queue)
        assert team.inboxes.got == ["https://me.example/x"]


async def test_what_a_worker_has_long_had_in_its_hands_is_not_tried_twice(queue: Queue) -> None:
    async with working(queue, holder="live") as team:
        (admitted,) = await team.consumer.recover(team.mine, 10)
        team.processor.held.add((team.mine, admitted.entry))
        stream = queue.keys.partition(team.mine).ready(Priority.URGENT)
        long_ms = 10 * int(queue.settings.lease * 1000)
        await queue.link.call("XCLAIM", stream, "workers", "live", 0, f"{admitted.entry}-0", "IDLE", long_ms)
        for _ in range(3):
            assert await team.retries._reclaim_all() == 0
        assert (await queue.conserved()).in_flight == 1


async def test_what_ends_while_redis_is_asked_what_a_worker_has_is_not_sent_again(queue: Queue) -> None:
    """An answer may be read after that to a later question, on another connection."""
    await queue.enqueue("x")
    admitted = await queue.admit(1, "live")
    team = Team(queue)
    team.inboxes.open.clear()
    settling = asyncio.create_task(team.processor.settler.run())
    assert team.processor.adopt(admitted) == 1
    team.consumer.slow = frozenset({team.mine})
    team.processor.doubtful.add(team.mine)
    asking = asyncio.create_task(team.processor._ask(team.mine, 10, urgent=False))
    await team.consumer.waits.wait()
    team.inboxes.open.set()
    async with asyncio.timeout(10):
        while team.processor.held:
            await asyncio.sleep(0.01)
    team.consumer.go_on.set()
    assert (await asking).admitted == []
    await end([settling])


async def test_what_comes_to_a_worker_that_has_finished_is_left_to_others(queue: Queue) -> None:
    """As when Redis was slow to answer while it stopped: its lease is given up next."""
    await queue.enqueue("x")
    team = Team(queue)
    team.consumer.late = frozenset({team.mine})
    team.processor.poke((team.mine,), urgent=True)
    taking = asyncio.create_task(team.processor._take_urgent(1))
    await team.consumer.waits.wait()
    team.processor.stop()
    await team.processor.finish(0)
    team.consumer.go_on.set()
    await taking
    assert team.processor.in_flight == 0
    assert len(await team.consumer.recover(team.mine, 10)) == 1


async def test_what_lacks_its_key_while_a_part_of_redis_is_away_is_asked_for_after_a_pause(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would be found and given up again as fast as Redis answers, and the worker said to be well."""
    monkeypatch.setattr(Processor, "SWEEP", 3600.0)
    async with working(queue) as team:
        team.keys.away = 1_000_000
        await team.retries._reclaim_all()
        async with asyncio.timeout(10):
            while "keys" not in team.beats.problems.get("consume", ""):
                assert team.consumer.recovered <= PARTITIONS, "those of the round that took it over"
                await asyncio.sleep(0.01)
        assert team.consumer.recovered <= PARTITIONS


async def test_what_lacked_its_key_is_tried_when_the_key_can_be_had(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Processor, "SWEEP", 0.01)
    async with working(queue) as team:
        team.keys.away = 3
        await team.retries._reclaim_all()
        await delivered(queue)
        assert team.inboxes.got == ["https://me.example/x"]
        async with asyncio.timeout(10):
            while "consume" in team.beats.problems:
                await asyncio.sleep(0.01)


async def test_a_partition_that_is_away_keeps_nobody_waiting_for_the_others(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a cluster does of which one master is away: a pause for all would last an hour here."""
    monkeypatch.setattr(Processor, "SWEEP", 3600.0)
    async with working(queue) as team:
        away, near = team.mine, next(n for n in range(100) if queue.partition_of(n) != team.mine)
        team.consumer.away = frozenset({away})
        team.processor.poke(range(PARTITIONS))
        async with asyncio.timeout(10):
            while "shard" not in team.beats.problems.get("consume", ""):
                await asyncio.sleep(0.01)
            asked = team.consumer.asked[away]
            for number in range(3):
                await queue.enqueue(f"near{number}", inbox=near)
                team.processor.poke(range(PARTITIONS), urgent=True)
                while len(team.inboxes.got) <= number:
                    await asyncio.sleep(0.01)
        assert team.consumer.asked[away] == asked == 1, "it is left alone meanwhile"
        assert "shard" in team.beats.problems["consume"], "and the worker does not say that all is well"


async def test_what_was_handed_out_by_a_partition_that_went_away_is_found_when_it_is_back(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Processor, "SWEEP", 0.01)
    async with working(queue) as team:
        team.consumer.away = frozenset({team.mine})
        await queue.enqueue("y")
        team.processor.poke((team.mine,))
        async with asyncio.timeout(10):
            while "shard" not in team.beats.problems.get("consume", ""):
                await asyncio.sleep(0.01)
            assert team.inboxes.got == []
            team.consumer.away = frozenset()
            await delivered(queue)
            while "consume" in team.beats.problems:
                await asyncio.sleep(0.01)
        assert "https://me.example/y" in team.inboxes.got
