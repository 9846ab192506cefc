"""Redis loses its memory, or is restored to an earlier state, while backlogs are in SQL."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from servers.key_ring import ADA, KeyRing, fresh
from servers.queue import HOUR_MS, ORDERED
from servers.spilling import EMPTY, FULL, HOST, Desk, archive, contents, put_back, signed_backlog
from servers.structure import check
from structlog.testing import capture_logs

from fedsvc.domain.delivery import DeliveryId, DeliveryState, Reason
from fedsvc.queue.canceller import Canceller
from fedsvc.queue.producer import Terms
from fedsvc.worker.spiller import Spiller


async def told(desk: Desk) -> int:
    """Redis learns of all that SQL has. Returns how many deliveries it did not know of."""
    with capture_logs() as logs:
        while await desk.spiller.tell():
            pass
    return sum(line["deliveries"] for line in logs if line["event"] == "spilled_batch_adopted")


async def test_what_is_in_sql_comes_back_to_a_redis_that_has_lost_its_memory(desk: Desk) -> None:
    sent = await desk.down(1300)
    await desk.short()
    await desk.queue.empty()
    assert await told(desk) == 1299, "all but the one that was left to probe with"
    stats = await desk.queue.conserved()
    assert (stats.counter("accepted"), stats.counter("spilled"), stats.parked) == (1299, 1299, 1299)
    assert stats.origins == {"me.example": 1299}
    for name in await desk.queue.keys_of("activity"):
        assert await desk.queue.link.call("PTTL", name) > HOUR_MS, "it does not stay for ever"
    await check(desk.queue)
    assert (await desk.queue.get(sent[7])).state is DeliveryState.PARKED
    assert await desk.recover() == sent[1:]
    stats = await desk.queue.conserved()
    assert (stats.counter("delivered"), stats.pending, stats.counter("spilled")) == (1299, 0, 0)
    await check(desk.queue)


async def test_it_is_not_forgotten_in_sql_either_when_redis_goes_on_with_something_else(desk: Desk) -> None:
    sent = await desk.down(300)
    await desk.short()
    held = await desk.store.batches(sent[0].partition)
    await desk.queue.empty()
    await desk.queue.pass_time(2 * HOUR_MS)
    await desk.queue.enqueue("x", inbox=1)
    for _ in range(2):
        await desk.spiller.tidy()
    assert await desk.store.batches(sent[0].partition) == held
    desk.spiller._tidied = -1e9
    await desk.spiller.round()
    assert await desk.recover() == sent[1:]
    for _ in range(2):
        await desk.spiller.tidy()
    assert await desk.store.batches(sent[0].partition) == []
    spent = desk.queue.keys.partition(sent[0].partition).spent
    assert await desk.queue.link.call("EXISTS", spent) == 0


async def test_what_is_newer_and_to_the_same_host_waits_for_it(desk: Desk) -> None:
    sent = await desk.down(300)
    await desk.short()
    await desk.queue.empty()
    await told(desk)
    later = [(await desk.queue.enqueue(f"late{n}", priority=desk.queue.BULK)).id for n in range(5)]
    assert await desk.recover() == sent[1:] + later


async def test_what_has_ended_since_it_came_back_does_not_come_again(desk: Desk) -> None:
    sent = await desk.down(300)
    await desk.short()
    await desk.queue.hosts.seen(HOST)
    (probe,) = await desk.queue.admit(1)
    await desk.queue.deliver(probe)
    assert await desk.spiller.round(), "it is back"
    ended: list[DeliveryId] = []
    while len(ended) < 100:
        for admitted in await desk.queue.admit(10):
            ended.append(admitted.id)
            if len(ended) % 2:
                await desk.queue.deliver(admitted)
            else:
                await desk.queue.settle(admitted, DeliveryState.DEAD, Reason.GONE)
        await desk.queue.pass_time(1000)
    await archive(desk)
    await desk.queue.empty()
    left = [id for id in sent[1:] if id not in ended]
    assert await told(desk) == len(left)
    assert await desk.recover() == left
    await check(desk.queue)


async def test_one_that_had_died_before_and_was_replayed_comes_back(desk: Desk) -> None:
    queue = desk.queue
    again = (await queue.enqueue("again", kind="Announce", priority=queue.BULK)).id
    for admitted in await queue.admit(1):
        await queue.settle(admitted, DeliveryState.DEAD, Reason.GONE)
    await archive(desk)
    sent = await desk.down(150)
    assert await queue.dead.move("replay", await queue.dead.find([again])) == 1
    while await desk.parked() < 151:
        for admitted in await queue.admit(100):
            await queue.fail(admitted)
    await desk.short()
    assert (await queue.conserved()).counter("spilled") == 150
    await queue.empty()
    assert await told(desk) == 150
    assert sorted(await desk.recover()) == sorted([again, *sent[1:]])


async def test_a_redis_that_is_restored_to_an_earlier_state_has_nothing_twice_and_lacks_nothing(
    desk: Desk,
) -> None:
    queue, sent = desk.queue, await desk.down(200)
    before = await contents(queue)  # all of them wait in Redis
    sent += [(await queue.enqueue(f"more{n}", kind="Announce", priority=queue.BULK)).id for n in range(200)]
    while await desk.parked() < 400:
        for admitted in await queue.admit(100):
            await queue.fail(admitted)
    await desk.short()
    assert (await queue.conserved()).counter("spilled") == 399
    await put_back(queue, before)
    assert await told(desk) == 200, "what it took in since"
    await check(queue)
    assert await desk.recover() == sent
    await check(queue)
    await queue.pass_time(2 * HOUR_MS)
    await queue.enqueue("x")
    for _ in range(2):
        await desk.spiller.tidy()
    assert await desk.store.batches(sent[0].partition) == []


async def test_several_workers_that_tell_redis_at_once_tell_it_once(desk: Desk) -> None:
    sent = await desk.down(1300)
    await desk.short()
    await desk.queue.empty()
    others = [Desk(desk.queue, desk.store) for _ in range(3)]
    with capture_logs() as logs:
        await asyncio.gather(*(other.spiller.tell() for other in others))
    adopted = [line["deliveries"] for line in logs if line["event"] == "spilled_batch_adopted"]
    assert sum(adopted) == 1299
    await check(desk.queue)
    assert await desk.recover() == sent[1:]


async def test_redis_is_told_of_so_many_in_one_round(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Spiller, "TOLD", 2)
    await desk.down(1300)
    await desk.short()
    await desk.queue.empty()
    assert await desk.spiller.tell()
    assert (await desk.queue.conserved()).counter("spilled") == 1000
    assert not await desk.spiller.tell()
    assert (await desk.queue.conserved()).counter("spilled") == 1299


async def test_what_broke_off_before_redis_took_note_is_looked_at_once(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = await desk.down(300)
    batch = await desk.spill.next_batch(sent[0].partition)
    assert batch is not None
    desk.memory.note(FULL)

    async def breaks_off(*_: object) -> bool:
        raise asyncio.CancelledError

    with monkeypatch.context() as patch:
        patch.setattr(desk.spill, "commit", breaks_off)
        with pytest.raises(asyncio.CancelledError):
            await desk.spiller.round()
    desk.memory.note(EMPTY)
    held = await desk.store.batches(sent[0].partition)
    assert await desk.spill.unknown(sent[0].partition, held) == held
    assert await told(desk) == 0, "Redis has them all"
    assert await desk.spill.unknown(sent[0].partition, held) == []
    await check(desk.queue)
    assert await desk.recover() == sent


async def test_a_batch_that_was_looked_at_too_early_goes_and_comes_all_the_same(desk: Desk) -> None:
    """One worker has written it to SQL, and another looks before Redis takes note."""
    sent = await desk.down(300)
    desk.memory.note(FULL)
    write = desk.store.write

    async def looked_at(*batch: object) -> None:
        await write(*batch)  # type: ignore[arg-type]
        assert await told(Desk(desk.queue, desk.store)) == 0

    desk.store.write = looked_at  # type: ignore[method-assign, assignment]
    assert await desk.spiller.round()
    assert (await desk.queue.conserved()).counter("spilled") == 299
    await desk.queue.pass_time(2 * HOUR_MS)
    await desk.queue.enqueue("x", inbox=1)
    for _ in range(2):
        await desk.spiller.tidy()
    desk.memory.note(EMPTY)
    assert await desk.recover() == sent


async def test_what_is_past_its_time_by_then_is_given_up_and_told(desk: Desk) -> None:
    await desk.down(150)
    await desk.short()
    await desk.queue.empty()
    await desk.queue.pass_time(50 * HOUR_MS)
    await told(desk)
    await desk.rounds()
    stats = await desk.queue.conserved()
    assert (stats.counter("accepted"), stats.counter("dead"), stats.pending) == (149, 149, 0)


async def test_order_holds_between_what_comes_back_and_what_is_new(desk: Desk) -> None:
    queue = desk.queue
    await desk.down(150)
    first = await queue.enqueue("first", priority=queue.BULK, relation=ORDERED)
    await queue.admit(100)
    await queue.enqueue("lost", relation=ORDERED)  # it is held back in Redis, behind the first
    await desk.short()
    await queue.empty()
    await told(desk)
    await check(queue)
    second = await queue.enqueue("second", relation=ORDERED)
    third = await queue.enqueue("third", relation=ORDERED)
    assert await queue.admit(100) == []
    await check(queue)
    got = await desk.recover()
    assert [id for id in got if id in (first.id, second.id, third.id)] == [first.id, second.id, third.id]
    await check(queue)


async def test_what_is_queued_again_is_a_duplicate_of_what_comes_back(desk: Desk) -> None:
    queue = desk.queue
    await desk.down(120)
    places = [queue.place(0, path) for path in ("/a", "/b")]
    message = queue.message("both", "Announce")
    await queue.producer.fan_out(message, places, Terms(queue.BULK))
    while await desk.parked() < 122:
        for admitted in await queue.admit(100):
            await queue.fail(admitted)
    await desk.short()
    both = "https://me.example/both"
    known = await queue.reader.list_activity(both, after=None, limit=9, states=frozenset())
    await queue.empty()
    assert await told(desk) == 121
    again = await queue.reader.list_activity(both, after=None, limit=9, states=frozenset())
    assert [each.id for each in again] == [each.id for each in known]
    assert len(again) == 2
    more = [*places, queue.place(0, "/c")]
    assert await queue.producer.fan_out(message, more, Terms(queue.BULK)) == (1, 2)
    await check(queue)
    got = await desk.recover()
    assert len(got) == len(set(got)) == 122
    await check(queue)


async def test_it_can_still_be_cancelled_by_those_whose_it_is(desk: Desk) -> None:
    queue = desk.queue
    await desk.down(1)
    of: dict[str, list[DeliveryId]] = {"a.example": [], "b.example": []}
    for number in range(150):
        origin = sorted(of)[number % 2]
        queued = await queue.enqueue(f"x{number}", kind="Announce", priority=queue.BULK, origin=origin)
        of[origin].append(queued.id)
    while await desk.parked() < 150:
        for admitted in await queue.admit(100):
            await queue.fail(admitted)
    desk.memory.note(FULL)
    await desk.rounds()
    await queue.empty()
    desk.memory.note(EMPTY)
    await told(desk)
    assert (await queue.stats.read()).origins == {"a.example": 75, "b.example": 75}
    canceller = Canceller(queue.link, queue.keys, queue.settings)
    assert (await canceller.cancel_host(HOST, origins=frozenset({"a.example"}))).in_flight == 75
    assert await queue.reader.get(of["a.example"][0], frozenset({"b.example"})) is None
    assert await desk.recover() == of["b.example"]
    await check(queue)


async def test_registered_keys_are_needed_by_what_came_back(ring: KeyRing, desk: Desk) -> None:
    desk = Desk(ring.queue, desk.store)
    await ring.registry.put(ADA, fresh())
    many = await signed_backlog(ring, desk)
    await ring.queue.empty()
    assert await told(desk) == many
    assert await ring.uses() == many
    await ring.registry.put(ADA, fresh())  # the application registers it again
    assert len(await desk.recover()) == many
    assert await ring.uses() == 0


async def test_who_tells_of_a_batch_too_late_changes_nothing(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another has told it since he looked, or it has come back already, and what it had has ended."""
    sent = await desk.down(300)
    await desk.short()
    await desk.queue.empty()
    late, adopt = [], desk.spill.adopt

    async def noted(*batch: Any) -> int:
        late.append(batch)
        return await adopt(*batch)

    monkeypatch.setattr(desk.spill, "adopt", noted)
    assert await told(desk) == 299
    keys = desk.queue.keys.partition(sent[0].partition)
    before = await contents(desk.queue)
    assert [await adopt(*batch) for batch in late] == [0] * len(late)
    assert await contents(desk.queue) == before
    assert await desk.recover() == sent[1:]
    await desk.queue.link.call("DEL", keys.deliveries)  # as after some days
    assert [await adopt(*batch) for batch in late] == [0] * len(late)
    assert await desk.spill.away(sent[0].partition) == set()
