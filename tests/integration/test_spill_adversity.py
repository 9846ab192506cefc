"""Backlogs on their way to SQL and back, on bad days: crashes, lost rows, changes meanwhile, a full Redis."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from servers.queue import HOUR_MS, open_queue
from servers.spilling import EMPTY, FULL, HOST, Desk, contents, put_back
from servers.valkey import valkey_server

from fedsvc.archive.engine import create_engine
from fedsvc.archive.spill_store import SpillStore
from fedsvc.archive.tables import metadata
from fedsvc.config import Settings
from fedsvc.domain.delivery import DeliveryId
from fedsvc.errors import QueueUnavailable
from fedsvc.queue.canceller import Canceller
from fedsvc.queue.durability import Durability
from fedsvc.queue.record import HEADER
from fedsvc.queue.spill import Spill
from fedsvc.worker.spiller import Spiller


class Killed(Exception):
    """The process ends here."""


async def dies(*_: object) -> None:
    raise Killed


async def test_a_crash_between_the_two_stores_loses_and_doubles_nothing(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = await desk.down(300)
    desk.memory.note(FULL)
    partition = desk.queue.partition_of(0)
    batch = await desk.spill.next_batch(partition)
    assert batch is not None
    # SQL has it, and then nothing more happens
    with monkeypatch.context() as patch:
        patch.setattr(desk.spill, "commit", dies)
        with pytest.raises(Killed):
            await desk.spiller.round()
    await desk.rounds()
    assert (await desk.queue.conserved()).counter("spilled") == 299
    # it came back, and Redis crashes and has forgotten that
    await desk.queue.hosts.seen(HOST)
    (probe,) = await desk.queue.admit(1)
    await desk.queue.deliver(probe)
    desk.memory.note(EMPTY)
    before = await contents(desk.queue)
    assert await desk.spiller.round()
    assert (await desk.queue.conserved()).counter("spilled") == 0
    await put_back(desk.queue, before)
    assert (await desk.queue.conserved()).counter("spilled") == 299
    assert [probe.id, *await desk.recover()] == sent
    held = await desk.store.batches(partition)
    assert len(held) == 2
    assert await desk.spill.stale(partition, held) == []
    await desk.queue.pass_time(2 * HOUR_MS)
    await desk.queue.enqueue("x")
    assert await desk.spill.stale(partition, held) == held


async def test_what_redis_still_asks_for_is_kept_however_old_and_all_where_redis_is_empty(desk: Desk) -> None:
    sent = await desk.down(300)
    desk.memory.note(FULL)
    await desk.rounds()
    held = await desk.store.batches(sent[0].partition)
    assert held
    await desk.queue.pass_time(2 * HOUR_MS)
    await desk.queue.enqueue("x")
    assert await desk.spill.stale(sent[0].partition, held) == []
    await desk.queue.empty()
    assert await desk.spill.stale(sent[0].partition, held) == []


async def test_a_batch_that_cannot_come_back_to_a_full_redis_keeps_nobody_from_making_room(
    tmp_path: Path, namespace: str
) -> None:
    engine = create_engine(Settings.from_environment({"DATABASE_URL": f"sqlite:///{tmp_path}/archive.db"}))
    try:
        async with engine.begin() as connection:
            await connection.run_sync(metadata.create_all)
        with valkey_server(tmp_path) as server:
            async with open_queue(server.url, namespace) as queue:
                desk = Desk(queue, SpillStore(engine))
                await desk.down(300)
                desk.memory.note(FULL)
                await desk.rounds()
                # It answers again: its batch should come back. But many wait for another.
                await queue.hosts.seen(HOST)
                (probe,) = await queue.admit(1)
                await queue.deliver(probe)
                await queue.hosts.pause("h1.example")
                for number in range(300):
                    await queue.enqueue(f"other{number}", inbox=1, priority=queue.BULK)
                await queue.admit(100, inbox=1)
                await queue.admit(100, inbox=1)
                await queue.link.call("CONFIG", "SET", "maxmemory", 1)
                with pytest.raises(QueueUnavailable):
                    await desk.spiller.round()
                assert (await queue.conserved()).counter("spilled") == 299 + 299
    finally:
        await engine.dispose()


async def test_a_batch_is_safe_in_redis_before_sql_forgets_it(desk: Desk) -> None:
    await desk.down(300)
    await desk.short()
    link = desk.queue.link
    await desk.queue.hosts.seen(HOST)
    (probe,) = await desk.queue.admit(1)
    await desk.queue.deliver(probe)
    link.durability = Durability(("WAIT", 1, 1), 1)  # there is no replica
    with pytest.raises(QueueUnavailable):
        await desk.spiller.round()
    assert len(await desk.store.batches(desk.queue.partition_of(0))) == 1


def lacking(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """SQL has none of its batches, until what this returns is called."""
    read = desk.store.read

    async def lost(*_: object) -> None:
        return None

    monkeypatch.setattr(desk.store, "read", lost)
    return lambda: monkeypatch.setattr(desk.store, "read", read)


async def test_a_batch_that_sql_has_lost_keeps_others_waiting_for_some_minutes_only(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = await desk.down(300)
    await desk.short()
    there_again = lacking(desk, monkeypatch)
    later = [(await desk.queue.enqueue(f"late{n}", priority=desk.queue.BULK)).id for n in range(5)]
    assert not set(later) & set(await desk.recover()), "it may be there again soon"
    monkeypatch.setattr(Spiller, "MISSING", 0.0)
    assert set(later) <= set(await desk.recover())
    assert (await desk.queue.conserved()).counter("spilled") == 299
    there_again()
    assert await desk.recover() == sent[1:]


async def test_a_batch_that_sql_lacked_is_remembered_for_no_longer_than_it_is_away(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    await desk.down(300)
    await desk.short()
    there_again = lacking(desk, monkeypatch)
    await desk.recover()
    await desk.spiller.tidy()
    ((partition, number),) = desk.spiller._missing
    there_again()
    other = Desk(desk.queue, desk.store)  # another worker, which brings it back
    assert await other.spiller.round()
    assert number not in await desk.spill.due(partition, Spiller.FEW)
    await desk.spiller.tidy()
    assert desk.spiller._missing == {}


async def test_batches_that_sql_has_lost_keep_none_that_it_has_from_coming_back_when_its_time_is_over(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after Redis was restored to a state in which there were many that have come back since."""
    monkeypatch.setattr(Spill, "BATCH", 10)
    monkeypatch.setattr(Spill, "WORTH", 5)
    monkeypatch.setattr(Spiller, "MISSING", 0.0)
    sent = await desk.down(301)
    await desk.short()
    partition = sent[0].partition
    *lost, kept = await desk.store.batches(partition)
    assert len(lost) == 29
    for number in lost:
        await desk.store.delete(partition, number)
    await desk.queue.pass_time(50 * HOUR_MS)
    for _ in range(10):  # eight of them are looked at each time
        await desk.spiller.round()
    assert kept not in await desk.spill.away(partition)
    assert (await desk.queue.conserved()).counter("dead") == 10


async def test_a_batch_that_changed_meanwhile_stays(desk: Desk) -> None:
    sent = await desk.down(200)
    batch = await desk.spill.next_batch(desk.queue.partition_of(0))
    assert batch is not None
    canceller = Canceller(desk.queue.link, desk.queue.keys, desk.queue.settings)
    await canceller.cancel([sent[7]])
    assert not await desk.spill.commit(batch)
    assert (await desk.queue.conserved()).counter("spilled") == 0


async def test_of_a_batch_that_changes_while_sql_takes_it_nothing_stays_in_sql(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = await desk.down(200)
    desk.memory.note(FULL)
    write = desk.store.write

    async def meanwhile(*batch: Any) -> None:
        await write(*batch)
        await Canceller(desk.queue.link, desk.queue.keys, desk.queue.settings).cancel([sent[7]])

    monkeypatch.setattr(desk.store, "write", meanwhile)
    assert not await desk.spiller.round()
    assert await desk.store.batches(sent[0].partition) == []
    monkeypatch.setattr(desk.store, "write", write)
    assert await desk.spiller.round(), "it is tried again"
    assert len(await desk.store.batches(sent[0].partition)) == 1


async def test_a_batch_that_sql_has_lost_is_asked_for_after_a_pause(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    await desk.down(300)
    await desk.short()

    async def lost(*_: object) -> None:
        return None

    monkeypatch.setattr(desk.store, "read", lost)
    await desk.queue.hosts.seen(HOST)
    (probe,) = await desk.queue.admit(1)
    await desk.queue.deliver(probe)
    assert await desk.spill.due(probe.id.partition, 1000)
    assert not await desk.spiller.round()


async def test_rows_that_nobody_asks_for_are_looked_for_once_in_a_while(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = 0

    async def tidy() -> None:
        nonlocal looked
        looked += 1

    monkeypatch.setattr(desk.spiller, "tidy", tidy)
    monkeypatch.setattr(Spiller, "TIDY", 1e9)
    await desk.spiller.round()
    assert looked == 0
    desk.spiller._tidied = -2e9
    for _ in range(3):
        await desk.spiller.round()
    assert looked == 1


#: what is wrong with a delivery that waits
SPOILT = ["no body", "no fields", "strange fields", "no identity", "strange inbox"]


async def spoil(desk: Desk, id: DeliveryId, how: str) -> None:
    keys, call = desk.queue.keys.partition(id.partition), desk.queue.link.call
    record = await call("HGET", keys.deliveries, str(id.sequence))
    message = keys.message(HEADER.unpack_from(record)[7])
    match how:
        case "no body":
            await call("HDEL", message, "b")
        case "no fields":
            await call("HDEL", message, "m")
        case "strange fields":
            await call("HSET", message, "m", "[")
        case "no identity":
            await call("HDEL", message, "i")
        case _:
            await call("HSET", keys.deliveries, str(id.sequence), record[:-1] + b"\xff")


@pytest.mark.parametrize("how", SPOILT)
async def test_what_cannot_be_read_stays_and_keeps_nothing_else_from_going(desk: Desk, how: str) -> None:
    sent = await desk.down(200)
    for spoilt in (sent[1], sent[101]):
        await spoil(desk, spoilt, how)
    batch = await desk.spill.next_batch(sent[0].partition)
    assert batch is not None
    assert [sequence for sequence, _ in batch.deliveries] == [id.sequence for id in sent[2:101] + sent[102:]]
    assert len(batch.messages) == 197
    await desk.short()
    stats = await desk.queue.conserved()
    assert (stats.counter("spilled"), stats.parked) == (197, 200), "all but these and the one to probe with"
    await Canceller(desk.queue.link, desk.queue.keys, desk.queue.settings).cancel_host(HOST)
    await desk.rounds()
    assert (await desk.queue.conserved()).counter("spilled") == 0
