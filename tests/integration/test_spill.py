"""Backlogs of hosts that are down go to SQL while memory is short, and come back: real Valkey, real SQL."""

from __future__ import annotations

from typing import Any

import pytest
from servers.queue import HOUR_MS
from servers.spilling import FULL, HOST, Desk
from servers.structure import check

from fedsvc.archive.spill_store import SpilledDelivery
from fedsvc.domain.delivery import DeliveryState, Reason
from fedsvc.domain.relations import Relation
from fedsvc.queue.canceller import Canceller
from fedsvc.queue.host_list import HostList, HostOrder
from fedsvc.queue.record import Record, unpack
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
