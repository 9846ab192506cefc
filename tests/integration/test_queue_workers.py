"""The queue among workers that die, wake up late or settle what another has settled."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

import pytest
from servers.queue import Queue

from fedsvc.domain.delivery import DeliveryState, Priority, Reason
from fedsvc.errors import FedsvcError, QueueUnavailable
from fedsvc.queue.consumer import Consumer, Settled, Settlement, Signal
from fedsvc.worker.beats import Beats
from fedsvc.worker.settler import Settler


async def test_a_dead_worker_is_forgotten_once_all_it_held_is_taken(queue: Queue) -> None:
    for number in range(5):
        await queue.enqueue(str(number))
    await queue.admit(5, worker="dead")
    await queue.pass_time(int(queue.settings.lease * 1000) + 1)
    partition = queue.partition_of(0)
    assert len(await queue.consumer("alive").reclaim(partition, 3)) == 3
    assert await queue.workers() == {"dead", "alive"}
    assert len(await queue.consumer("alive").reclaim(partition, 3)) == 2
    await queue.consumer("alive").reclaim(partition, 3)
    assert await queue.workers() == {"alive"}
    await queue.is_whole(in_flight=5)


async def test_recovering_does_not_count_as_being_handed_out_again(queue: Queue) -> None:
    await queue.enqueue("1")
    await queue.admit(1, worker="a")
    for _ in range(3):
        (found,) = await queue.consumer("a").recover(queue.partition_of(0), 10)
        assert found.times == 1
    await queue.pass_time(int(queue.settings.lease * 1000) + 1)
    (taken,) = await queue.reclaim("b")
    (found,) = await queue.consumer("b").recover(queue.partition_of(0), 10)
    assert taken.times == found.times == 2


async def test_a_worker_that_wakes_up_after_its_lease_is_a_worker_again(queue: Queue) -> None:
    await queue.enqueue("1")
    await queue.admit(1, worker="sleeper")
    await queue.pass_time(int(queue.settings.lease * 1000) + 1)
    await queue.reclaim("other")
    await queue.reclaim("other")
    assert await queue.workers() == {"other"}
    await queue.enqueue("2")
    (admitted,) = await queue.admit(5, worker="sleeper")
    assert (await queue.settle(admitted, DeliveryState.DELIVERED, worker="sleeper")).passed_over == set()
    await queue.is_whole(delivered=1, in_flight=1)


async def test_two_archivers_at_once_count_nothing_twice(queue: Queue) -> None:
    partition = queue.partition_of(0)

    async def finish(activity: str) -> None:
        await queue.enqueue(activity)
        (admitted,) = await queue.admit(1)
        await queue.settle(admitted, DeliveryState.DELIVERED)

    await finish("1")
    _, slow, few = await queue.outcomes.read(partition, 0, 10)
    await finish("2")
    _, fast, more = await queue.outcomes.read(partition, 0, 10)
    assert (few, more) == (1, 2)
    await queue.outcomes.commit(partition, 0, slow, few)
    await queue.outcomes.commit(partition, 0, fast, more)
    await queue.outcomes.commit(partition, 0, slow, few)
    assert await queue.outcomes.position(partition) == fast
    assert (await queue.stats.read()).archive_backlog == 0
    await finish("3")
    assert (await queue.stats.read()).archive_backlog == 1


# Settlements on their way


class Refusing(Consumer):
    """Refuses batches as something is wrong with one, and then goes away for a while."""

    def __init__(self, queue: Queue) -> None:
        super().__init__(queue.link, queue.keys, queue.settings, "a")
        self.answers: list[FedsvcError | None] = [
            FedsvcError("refused"), None, QueueUnavailable("away"), FedsvcError("refused"),
        ]  # fmt: skip

    async def settle(self, partition: int, settlements: Sequence[Settlement]) -> Settled:
        answer = self.answers.pop(0) if self.answers else None
        if answer is not None:
            raise answer
        return await super().settle(partition, settlements)


async def test_of_two_who_settle_one_delivery_the_first_has_it_confirmed(
    queue: Queue,
) -> None:
    await queue.enqueue("1")
    (admitted,) = await queue.admit(1)
    outcome = await queue.get(admitted.id)
    confirmed: list[str] = []

    def note(name: str, _: Settlement) -> None:
        confirmed.append(name)

    for name in ("first", "second"):
        settler = Settler(
            queue.consumer("one"), Beats("settle"), lambda _: None, woken=lambda _: None, busy=lambda: False,
            confirmed=partial(note, name),
        )  # fmt: skip
        settler.add(Settlement(admitted, DeliveryState.DELIVERED, True, outcome=outcome))
        running = asyncio.create_task(settler.run())
        async with asyncio.timeout(10):
            await settler.drained()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert confirmed == ["first"]


async def test_no_settlement_is_lost_when_redis_goes_away_among_those_tried_one_by_one(queue: Queue) -> None:
    for number in range(5):
        await queue.enqueue(str(number))
    settled: list[Settlement] = []
    settler = Settler(
        Refusing(queue), Beats("settle"), settled.append, woken=lambda _: None, busy=lambda: False
    )
    for admitted in await queue.admit(5):
        shown = await queue.get(admitted.id)
        settler.add(Settlement(admitted, DeliveryState.DELIVERED, True, outcome=shown))
    running = asyncio.create_task(settler.run())
    async with asyncio.timeout(10):
        await settler.drained()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert len(settler) == 0
    assert len(settled) == 5
    await queue.is_whole(delivered=5)


@pytest.mark.parametrize("stale_first", [True, False])
async def test_one_delivery_may_be_settled_twice_in_a_batch(queue: Queue, stale_first: bool) -> None:
    """As when the answer to its first settlement was lost, and it was handed out again meanwhile."""
    await queue.enqueue("1")
    (stale,) = await queue.admit(10)
    await queue.fail(stale, wait_ms=1)
    await queue.pass_time(10)
    await queue.promote()
    (fresh,) = await queue.admit(10)
    assert (fresh.id, fresh.entry != stale.entry) == (stale.id, True)
    taken = Signal.ANSWERED | Signal.TOOK
    batch = [await queue.settlement(each, DeliveryState.DELIVERED, signal=taken) for each in (stale, fresh)]
    settled = await queue.consumer("a").settle(fresh.id.partition, batch if stale_first else batch[::-1])
    assert settled.passed_over == {0 if stale_first else 1}
    await queue.is_whole(delivered=1)


@pytest.mark.parametrize("delivered_first", [True, False])
async def test_one_delivery_that_is_in_flight_twice_ends_as_one_that_can_be_shown(
    queue: Queue, delivered_first: bool
) -> None:
    """As when somebody else has put it into the stream once more."""
    queued = await queue.enqueue("1")
    stream = queue.keys.partition(queue.partition_of(0)).ready(Priority.URGENT)
    await queue.link.call("XADD", stream, f"{queued.id.sequence + 5}-0", "d", queued.id.sequence)
    first, second = await queue.admit(10)
    assert (first.id, second.id) == (queued.id, queued.id)
    batch = [
        await queue.settlement(first, DeliveryState.RETRY, Reason.TIMEOUT),
        await queue.settlement(second, DeliveryState.DELIVERED, signal=Signal.ANSWERED | Signal.TOOK),
    ]
    await queue.consumer("a").settle(queued.id.partition, batch[::-1] if delivered_first else batch)
    assert (await queue.get(queued.id)).state is DeliveryState.DELIVERED
