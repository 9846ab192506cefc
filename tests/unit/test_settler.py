"""When settlements go to Redis, and with which others. No Redis is asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from fedsvc.domain.delivery import DeliveryId, DeliveryState, Priority
from fedsvc.errors import FedsvcError, QueueUnavailable
from fedsvc.queue.consumer import Admitted, Consumer, Settled, Settlement
from fedsvc.queue.record import Record
from fedsvc.worker.beats import Beats
from fedsvc.worker.settler import Settler


def settlement(number: int, partition: int = 0) -> Settlement:
    record = Record(DeliveryState.READY, 0, Priority.URGENT, 7, 0, 0, 0, 5, 9, "https://a.example/inbox", ())
    return Settlement(Admitted(DeliveryId(partition, number), 1, 9, record, 1), DeliveryState.DELIVERED, True)


class Redis(Consumer):
    """Takes all settlements but those that `problems` has something against: each once."""

    def __init__(self) -> None:
        self.asked = 0
        self.taken: list[tuple[int, list[int]]] = []
        self.problems: dict[int, list[FedsvcError]] = {}
        self.woken = False

    async def settle(self, partition: int, settlements: Sequence[Settlement]) -> Settled:
        self.asked += 1
        await asyncio.sleep(0)
        numbers = [each.admitted.id.sequence for each in settlements]
        for number in numbers:
            if self.problems.get(number):
                raise self.problems[number].pop(0)
        self.taken.append((partition, numbers))
        return Settled(set(), self.woken)


class Desk:
    def __init__(self) -> None:
        self.redis = Redis()
        self.beats = Beats("settle")
        self.busy = False
        self.woken: list[int] = []
        self.settled: list[int] = []
        self.confirmed: list[int] = []
        self.settler = Settler(
            self.redis, self.beats, lambda each: self.settled.append(each.admitted.id.sequence),
            woken=self.woken.append, busy=lambda: self.busy,
            confirmed=lambda each: self.confirmed.append(each.admitted.id.sequence),
        )  # fmt: skip

    def add(self, numbers: Sequence[int], partition: int = 0) -> None:
        for number in numbers:
            self.settler.add(settlement(number, partition))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        running = asyncio.create_task(self.settler.run())
        try:
            async with asyncio.timeout(10):
                yield
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setattr(Settler, "PAUSE", 0.0)
    return Desk()


async def test_a_settler_with_nothing_to_settle_is_drained(desk: Desk) -> None:
    async with asyncio.timeout(10):
        await desk.settler.drained()


async def test_a_worker_with_more_in_hand_than_it_can_send_settles_full_batches_and_what_has_waited(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Settler, "LINGER", 1000.0)
    desk.busy = True
    desk.add(range(Settler.BATCH), partition=1)
    desk.add(range(Settler.BATCH - 1), partition=2)
    assert await desk.settler._flush()
    assert desk.redis.taken == [(1, list(range(Settler.BATCH)))]
    monkeypatch.setattr(Settler, "LINGER", 0.0)
    async with desk.running():
        await desk.settler.drained()
    assert desk.redis.taken[1:] == [(2, list(range(Settler.BATCH - 1)))]


async def test_what_waits_for_company_is_settled_once_the_worker_is_less_busy(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Settler, "LINGER", 1000.0)
    desk.busy = True
    desk.add([1])
    async with desk.running():
        desk.add(range(2, Settler.BATCH + 2), partition=3)
        while not desk.redis.taken:
            await asyncio.sleep(0)
        assert [partition for partition, _ in desk.redis.taken] == [3]
        desk.busy = False
        await desk.settler.drained()
    assert desk.redis.taken[1:] == [(0, [1])]


async def turns(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


async def test_a_settler_at_rest_takes_up_no_processor_and_beats(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    flush, flushed = desk.settler._flush, 0

    async def counted() -> bool:
        nonlocal flushed
        flushed += 1
        return await flush()

    monkeypatch.setattr(desk.settler, "_flush", counted)
    monkeypatch.setattr(Settler, "SHORT", 0.0)
    async with desk.running():
        assert desk.beats.problems == {"settle": "not started"}
        while desk.beats.problems:
            await asyncio.sleep(0.01)
        assert flushed == 0
        desk.add([1])
        await desk.settler.drained()
        await turns(50)
        assert flushed == 1


async def test_while_redis_is_away_it_is_asked_again_after_a_pause_only(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Settler, "SHORT", 0.0)
    monkeypatch.setattr(Settler, "PAUSE", 1000.0)
    desk.redis.problems[1] = [QueueUnavailable("away")]
    desk.add([1])
    async with desk.running():
        while not desk.redis.asked:
            await asyncio.sleep(0)
        await turns(50)
    assert (desk.redis.asked, desk.redis.taken) == (1, [])


async def test_settlements_of_the_same_moment_go_together(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Settler, "SHORT", 0.2)
    async with desk.running():
        for number in range(10):
            desk.add([number])
            await asyncio.sleep(0)
        await desk.settler.drained()
    assert desk.redis.taken == [(0, list(range(10)))]


async def test_no_script_gets_more_than_a_batch(desk: Desk) -> None:
    desk.add(range(2 * Settler.BATCH + 1))
    async with desk.running():
        await desk.settler.drained()
    assert [len(numbers) for _, numbers in desk.redis.taken] == [Settler.BATCH, Settler.BATCH, 1]
    assert desk.settled == list(range(2 * Settler.BATCH + 1))


async def test_what_redis_did_not_take_goes_first_the_next_time(desk: Desk) -> None:
    desk.redis.problems[1] = [QueueUnavailable("away")]
    desk.add([1, 2])
    flushing = asyncio.create_task(desk.settler._flush())
    while not desk.redis.asked:
        await asyncio.sleep(0)
    desk.add([3])
    assert await flushing is False
    assert (len(desk.settler), desk.beats.problems) == (3, {"settle": "away"})
    async with desk.running():
        await desk.settler.drained()
        await turns(5)
        assert desk.beats.problems == {}
    assert desk.redis.taken == [(0, [1, 2, 3])]
    assert len(desk.settler) == 0


async def test_the_one_that_redis_refuses_takes_no_other_along_and_keeps_nobody_waiting(desk: Desk) -> None:
    desk.redis.problems[2] = [FedsvcError("refused"), FedsvcError("refused")]
    desk.add([1, 2, 3])
    async with desk.running():
        await desk.settler.drained()
    assert desk.redis.taken == [(0, [1]), (0, [3])]
    assert (desk.settled, desk.confirmed) == ([1, 2, 3], [1, 3])
    assert len(desk.settler) == 0


async def test_a_partition_whose_lanes_may_give_more_is_told(desk: Desk) -> None:
    desk.add([1], partition=4)
    await desk.settler._flush()
    assert desk.woken == []
    desk.redis.woken = True
    desk.add([2], partition=4)
    await desk.settler._flush()
    assert desk.woken == [4]
