"""SQL lacks a batch that Redis asks for: Redis was restored to an earlier state, or SQL has lost rows."""

from __future__ import annotations

import pytest
from servers.key_ring import ADA, KeyRing, fresh
from servers.queue import HOUR_MS, ORDERED
from servers.spilling import HOST, Desk, archive, contents, put_back, signed_backlog
from servers.structure import check
from structlog.testing import capture_logs

from fedsvc.archive.archive import Archive
from fedsvc.domain.delivery import DeliveryId, DeliveryState, Reason
from fedsvc.domain.relations import Relation, Rule
from fedsvc.errors import ArchiveUnavailable
from fedsvc.queue.canceller import Canceller
from fedsvc.worker.spiller import Spiller


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing is believed to be lost at the first look."""
    monkeypatch.setattr(Spiller, "MISSING", 0.0)


async def forget_all(desk: Desk) -> None:
    """SQL loses its batches."""
    for partition in range(desk.queue.settings.partitions):
        for number in await desk.store.batches(partition):
            await desk.store.delete(partition, number)


async def tidied(desk: Desk) -> None:
    """SQL forgets the batches that have come back."""
    await desk.queue.pass_time(2 * HOUR_MS)
    await desk.queue.enqueue("x")
    for _ in range(2):
        await desk.spiller.tidy()


async def gone_and_back(desk: Desk) -> tuple[list[DeliveryId], dict[bytes, bytes]]:
    """What waits for a host goes to SQL, and comes back. Returns all that were sent, and what Redis held
    meanwhile."""
    sent = await desk.down(300)
    await desk.short()
    before = await contents(desk.queue)
    await desk.queue.hosts.seen(HOST)
    (probe,) = await desk.queue.admit(1)
    await desk.queue.deliver(probe)
    assert await desk.spiller.round(), "it is back"
    return sent, before


async def test_what_the_archive_says_has_ended_since_ends_so(desk: Desk, at_once: None) -> None:
    queue = desk.queue
    sent, before = await gone_and_back(desk)
    ended: dict[DeliveryId, DeliveryState] = {}
    while len(ended) < 299:
        for admitted in await queue.admit(10):
            dies = len(ended) % 3 == 0
            ended[admitted.id] = DeliveryState.DEAD if dies else DeliveryState.DELIVERED
            if dies:
                await queue.settle(admitted, DeliveryState.DEAD, Reason.GONE)
            else:
                await queue.deliver(admitted)
        await queue.pass_time(1000)
    await archive(desk)
    await tidied(desk)
    assert await desk.store.batches(queue.partition_of(0)) == []
    await put_back(queue, before)
    assert (await queue.conserved()).counter("spilled") == 299
    with capture_logs() as logs:
        await desk.spiller.tell()
    assert [line["deliveries"] for line in logs if line["event"] == "spilled_given_up"] == [299]
    stats = await queue.conserved()
    dead = sum(state is DeliveryState.DEAD for state in ended.values())
    assert (stats.counter("delivered"), stats.counter("purged")) == (299 - dead, dead), "no letter is left"
    assert (stats.counter("spilled"), stats.counter("dead")) == (0, 0)
    await check(queue)
    assert await queue.reader.get(sent[5]) is None, "the archive tells of it"
    told = await Archive(desk.store.engine).get(sent[5])
    assert told is not None
    assert told.state is ended[sent[5]]
    assert await desk.recover() == [sent[0]], "which was left to probe with"


async def test_the_others_may_still_be_sent_until_their_time_is_over(desk: Desk, at_once: None) -> None:
    queue = desk.queue
    await desk.down(300)
    await desk.short()
    await forget_all(desk)
    await desk.spiller.tell()
    stats = await queue.conserved()
    assert (stats.counter("spilled"), stats.counter("dead")) == (299, 0)
    await check(queue)
    await queue.pass_time(50 * HOUR_MS)
    await desk.spiller.tell()
    stats = await queue.conserved()
    assert (stats.counter("spilled"), stats.counter("dead")) == (0, 299)
    await check(queue)


async def test_a_dead_letter_of_what_was_lost_tells_what_is_known_and_can_be_replayed_and_purged(
    desk: Desk, at_once: None
) -> None:
    queue, sent = desk.queue, await desk.down(150)
    await desk.short()
    await forget_all(desk)
    await queue.pass_time(50 * HOUR_MS)
    await desk.spiller.tell()
    told = await queue.get(sent[5])
    assert (told.state, told.reason) == (DeliveryState.DEAD, Reason.BODY_MISSING)
    assert (told.host, told.origin, told.inbox) == (HOST, "me.example", "")
    await archive(desk)
    assert await queue.dead.move("replay", await queue.dead.find([sent[5]])) == 1
    (again,) = [admitted for admitted in await queue.admit(100) if admitted.id == sent[5]]
    await queue.settle(again, DeliveryState.DEAD, Reason.BODY_MISSING)
    assert await queue.dead.move("purge", await queue.dead.find(sent)) == 150, "the one in the lane as well"
    stats = await queue.conserved()
    assert (stats.counter("dead"), stats.counter("purged")) == (0, 150)
    await check(queue)


async def test_what_nobody_wants_any_more_ends_at_once_and_what_the_caller_said_expires(
    desk: Desk, at_once: None
) -> None:
    queue = desk.queue
    await desk.down(1)
    note = Relation("", "note", Rule.SAME_KEY)
    old = await queue.enqueue("old", kind="Announce", priority=queue.BULK, relation=note)
    soon = await queue.link.now_ms() + 40 * HOUR_MS
    brief = await queue.enqueue("brief", kind="Announce", priority=queue.BULK, expire_ms=soon)
    of = {"a.example": 0, "b.example": 0}
    for number in range(150):
        origin = sorted(of)[number % 2]
        of[origin] += 1
        await queue.enqueue(f"x{number}", kind="Announce", priority=queue.BULK, origin=origin)
    while await desk.parked() < 152:
        for admitted in await queue.admit(100):
            await queue.fail(admitted)
    await desk.short()
    assert (await queue.conserved()).counter("spilled") == 152
    await queue.enqueue("new", kind="Announce", priority=queue.BULK, relation=note)
    canceller = Canceller(queue.link, queue.keys, queue.settings)
    assert (await canceller.cancel_host(HOST, origins=frozenset({"a.example"}))).in_flight == of["a.example"]
    await forget_all(desk)
    await desk.spiller.tell()
    stats = await queue.conserved()
    assert (stats.counter("superseded"), stats.counter("cancelled")) == (1, of["a.example"])
    assert (await queue.get(old.id)).state is DeliveryState.SUPERSEDED
    assert (stats.counter("spilled"), stats.origins["b.example"]) == (of["b.example"] + 1, of["b.example"])
    await check(queue)
    await queue.pass_time(41 * HOUR_MS)
    await desk.spiller.tell()
    assert (await queue.get(brief.id)).state is DeliveryState.EXPIRED
    stats = await queue.conserved()
    assert (stats.counter("expired"), stats.counter("spilled")) == (1, of["b.example"])
    await check(queue)


async def test_nothing_is_given_up_before_it_was_looked_for_twice_nor_while_sql_is_away(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    await desk.down(150)
    await desk.short()
    await desk.queue.pass_time(50 * HOUR_MS)
    partition = desk.queue.partition_of(0)
    (number,) = await desk.store.batches(partition)
    found = await desk.store.read(partition, number)
    assert found is not None
    await desk.store.delete(partition, number)
    with capture_logs() as logs:
        for _ in range(2):
            await desk.spiller.tell()
    assert [line["batch"] for line in logs if line["event"] == "spilled_batch_missing"] == [number]
    assert (await desk.queue.conserved()).counter("spilled") == 149, "it may be there again soon"
    monkeypatch.setattr(Spiller, "MISSING", 0.0)

    async def away(_: int) -> list[int]:
        raise ArchiveUnavailable("SQL is away")

    with monkeypatch.context() as patch:
        patch.setattr(desk.store, "batches", away)
        with pytest.raises(ArchiveUnavailable):
            await desk.spiller.tell()
    await desk.store.write(partition, number, *found)
    await desk.spiller.tell()
    assert (await desk.queue.conserved()).counter("spilled") == 149, "it is there again"
    await desk.spiller.tidy()
    assert desk.spiller._lost == {}
    await desk.rounds()
    stats = await desk.queue.conserved()
    assert (stats.counter("spilled"), stats.counter("dead")) == (0, 149)
    assert {(await desk.queue.get(DeliveryId(partition, d.id.sequence))).reason for d in found[1][:3]} == {
        Reason.MAX_AGE
    }


async def test_what_went_to_sql_again_since_comes_back_from_there(desk: Desk, at_once: None) -> None:
    queue = desk.queue
    sent, before = await gone_and_back(desk)
    for _ in range(5):
        for admitted in await queue.admit(1):
            await queue.fail(admitted, wait_ms=1000 * HOUR_MS)
        await queue.pass_time(1000)
    await archive(desk)
    await queue.pass_time(HOUR_MS)
    await desk.short()
    away = (await queue.conserved()).counter("spilled")
    assert away > 250
    partition = queue.partition_of(0)
    await tidied(desk)
    (second,) = await desk.store.batches(partition)
    await put_back(queue, before)
    canceller = Canceller(queue.link, queue.keys, queue.settings)
    await canceller.cancel([sent[-1]])
    assert second not in await desk.spill.away(partition)
    await desk.spiller.tell()
    assert second in await desk.spill.away(partition)
    await check(queue)
    got = await desk.recover()
    assert got == [sent[0], *sent[300 - away : -1]]
    assert (await queue.get(sent[-1])).state is DeliveryState.CANCELLED
    await check(queue)


async def test_what_waits_for_its_order_behind_what_was_lost_goes_on(desk: Desk, at_once: None) -> None:
    queue = desk.queue
    await desk.down(150)
    await queue.enqueue("first", priority=queue.BULK, relation=ORDERED)
    while await desk.parked() < 151:
        for admitted in await queue.admit(100):
            await queue.fail(admitted)
    await desk.short()
    second = await queue.enqueue("second", relation=ORDERED)
    assert await queue.admit(100) == []
    await check(queue)
    await forget_all(desk)
    third = await queue.enqueue("third", relation=ORDERED)
    await queue.pass_time(50 * HOUR_MS)
    await desk.spiller.tell()
    await check(queue)
    got = await desk.recover()
    assert [id for id in got if id in (second.id, third.id)] == [second.id, third.id]
    await check(queue)


async def test_keys_are_not_held_by_what_was_lost(ring: KeyRing, desk: Desk, at_once: None) -> None:
    desk = Desk(ring.queue, desk.store)
    await ring.registry.put(ADA, fresh())
    many = await signed_backlog(ring, desk)
    uses = await ring.uses()
    await forget_all(desk)
    await ring.queue.pass_time(50 * HOUR_MS)
    await desk.spiller.tell()
    assert await ring.uses() == uses - many
