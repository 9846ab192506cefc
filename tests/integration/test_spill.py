"""Backlogs of hosts that are down go to SQL while memory is short, and come back: real Valkey, real SQL."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from servers.queue import HOUR_MS, open_queue
from servers.spilling import EMPTY, FULL, HOST, Desk, contents, put_back
from servers.structure import check
from servers.valkey import valkey_server

from fedsvc.archive.engine import create_engine
from fedsvc.archive.spill_store import SpilledDelivery, SpillStore
from fedsvc.archive.tables import metadata
from fedsvc.config import Settings
from fedsvc.domain.delivery import DeliveryId, DeliveryState, Reason
from fedsvc.domain.relations import Relation
from fedsvc.errors import QueueUnavailable
from fedsvc.queue.canceller import Canceller
from fedsvc.queue.durability import Durability
from fedsvc.queue.host_list import HostList, HostOrder
from fedsvc.queue.record import HEADER, Record, unpack
from fedsvc.queue.spill import Spill
from fedsvc.worker.spiller import Spiller


async def test_a_backlog_goes_to_sql_when_memory_is_short_and_comes_back_in_order(desk: Desk) -> None:
    sent = await desk.down(1300)
    await desk.rounds()
    assert await desk.store.batches(desk.queue.partition_of(0)) == [], "there is memory enough"
    desk.memory.note(FULL)
    before = await desk.queue.link.call("DBSIZE")
    await desk.rounds()
    stats = await desk.queue.conserved()
    assert stats.counter("spilled") == 1299, "all but the one to probe with"
    assert stats.parked == 1300
    listed = (await HostList(desk.queue.link, desk.queue.keys, desk.queue.settings).snapshot()).page(
        HostOrder.BACKLOG, after=None, limit=1
    )
    assert listed.hosts == [await desk.queue.hosts.get(HOST)]
    assert listed.hosts[0].parked == 1300, "wherever it waits"
    assert await desk.queue.link.call("DBSIZE") < before - 1000, "the activities have gone as well"
    assert await desk.recover() == sent
    stats = await desk.queue.conserved()
    assert (stats.counter("spilled"), stats.parked, stats.counter("delivered")) == (0, 0, 1300)
    await desk.queue.pass_time(2 * HOUR_MS)
    await desk.queue.enqueue("x")
    await desk.spiller.tidy()
    assert len(await desk.store.batches(desk.queue.partition_of(0))) == 3, "seen once"
    await desk.spiller.tidy()
    assert await desk.store.batches(desk.queue.partition_of(0)) == []


async def test_hosts_for_which_nothing_waits_cost_redis_next_to_nothing_while_memory_is_short(
    desk: Desk,
) -> None:
    queue, partition = desk.queue, desk.queue.partition_of(0)
    near = [n for n in range(200) if queue.partition_of(n) == partition]
    await queue.fan_out("1", near)
    for admitted in await queue.admit(100):
        await queue.deliver(admitted)

    async def looks() -> int:
        """How often a single field was read."""
        told = (await queue.link.call("INFO", "commandstats")).decode()
        return int(told.split("cmdstat_hget:calls=")[1].split(",")[0])

    before = await looks()
    assert await desk.spill.next_batch(partition) is None
    assert await looks() - before < len(near) / 2


@pytest.mark.parametrize("few", [3, 1000])
async def test_what_comes_after_waits_for_what_is_in_sql(
    desk: Desk, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Spiller, "FEW", few)  # more may wait behind what is in SQL
    sent = await desk.down(300)
    desk.memory.note(FULL)
    await desk.rounds()
    later = [(await desk.queue.enqueue(f"late{n}", priority=desk.queue.BULK)).id for n in range(5)]
    await desk.queue.admit(100)
    assert await desk.recover() == sent + later


async def test_retries_behind_what_waits_for_sql_do_not_keep_it_there(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a lane that is not sorted, the first may have to wait for SQL, and those behind it be older."""
    queue = desk.queue
    old = [(await queue.enqueue(f"old{n}", path=f"/{n}", priority=queue.BULK)).id for n in range(10)]
    for admitted in await queue.admit(100):
        await queue.settle(admitted, DeliveryState.RETRY, Reason.SERVER_ERROR, wait_ms=2 * HOUR_MS)
    sent = await desk.down(300)
    await desk.short()
    late = [(await queue.enqueue(f"late{n}", priority=queue.BULK)).id for n in range(6)]
    await queue.admit(100)
    await queue.pass_time(2 * HOUR_MS)
    await queue.promote()
    for admitted in await queue.admit(100):
        await queue.fail(admitted)
    monkeypatch.setattr(Spiller, "FEW", 7)  # when the first has gone, the seventh is an old one
    got = await desk.recover()
    assert sorted(got) == sorted([*old, *sent, *late])


async def test_a_host_is_probed_with_what_is_in_sql_when_nothing_else_is_left(desk: Desk) -> None:
    sent = await desk.down(300)
    await desk.short()
    canceller = Canceller(desk.queue.link, desk.queue.keys, desk.queue.settings)
    assert (await canceller.cancel([sent[0]])).cancelled == 1
    assert await desk.recover() == sent[1:]


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


async def test_sql_knows_when_each_that_it_has_is_too_old(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = await desk.down(200)
    desk.memory.note(FULL)
    written: list[SpilledDelivery] = []

    async def write(_partition: int, _number: int, _host: str, deliveries: Any, _messages: Any) -> None:
        written.extend(deliveries)

    monkeypatch.setattr(desk.store, "write", write)
    await desk.spiller.round()
    assert [each.id for each in written] == sent[1:]
    for each in written:
        record = unpack(each.record, each.id)
        assert isinstance(record, Record)
        assert each.deadline_s == record.deadline_s


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


async def test_what_lost_its_body_since_it_was_shown_ends_the_batch_before_it(desk: Desk) -> None:
    sent = await desk.down(200)
    keys = desk.queue.keys.partition(desk.queue.partition_of(0))

    async def loses_its_body(id: DeliveryId) -> None:
        record = await desk.queue.link.call("HGET", keys.deliveries, str(id.sequence))
        await desk.queue.link.call("HDEL", keys.message(HEADER.unpack_from(record)[7]), "b")

    await loses_its_body(sent[101])
    batch = await desk.spill.next_batch(sent[0].partition)
    assert batch is not None
    assert [sequence for sequence, _ in batch.deliveries] == [id.sequence for id in sent[1:101]]
    assert len(batch.messages) == 100
    await loses_its_body(sent[1])
    assert await desk.spill.next_batch(sent[0].partition) is None


async def test_a_batch_has_bodies_for_some_megabytes_and_no_more(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = await desk.down(200)
    monkeypatch.setattr(Spill, "BYTES", 1)
    batch = await desk.spill.next_batch(sent[0].partition)
    assert batch is not None
    assert (len(batch.deliveries), len(batch.messages)) == (50, 50)
    size = sum(len(message.body) for message in batch.messages)
    monkeypatch.setattr(Spill, "BYTES", size)
    batch = await desk.spill.next_batch(sent[0].partition)
    assert batch is not None
    assert len(batch.deliveries) == 100, "past it, not at it"


async def test_what_has_ended_in_a_lane_keeps_nothing_else_from_going_to_sql(desk: Desk) -> None:
    sent = await desk.down(1300)
    canceller = Canceller(desk.queue.link, desk.queue.keys, desk.queue.settings)
    gone = {sent[0], sent[7], *sent[600:1200]}
    await canceller.cancel(gone)
    desk.memory.note(FULL)
    await desk.rounds()
    left = [id for id in sent if id not in gone]
    assert (await desk.queue.conserved()).counter("spilled") == len(left) - 1, "all but the one to probe with"
    assert await desk.recover() == left


async def test_order_holds_across_sql(desk: Desk) -> None:
    """A delivery that waits for one that is in SQL goes on waiting."""
    queue = desk.queue
    await desk.down(150)
    first = await queue.enqueue("first", priority=queue.BULK, relation=Relation("key"))
    await queue.admit(100)
    desk.memory.note(FULL)
    await desk.rounds()
    second = await queue.enqueue("second", relation=Relation("key"))
    assert await queue.admit(100) == []
    await check(queue)
    got = await desk.recover()
    assert got.index(first.id) < got.index(second.id)
    await queue.conserved()
