"""Backlogs of hosts that are down go to SQL while memory is short, and come back: real Valkey, real SQL."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from servers.queue import HOUR_MS, Queue, open_queue
from servers.valkey import ValkeyServer, valkey_server

from fedsvc.archive.engine import create_engine
from fedsvc.archive.spill_store import SpillStore
from fedsvc.archive.tables import metadata
from fedsvc.config import Settings
from fedsvc.domain.delivery import DeliveryId, DeliveryState, Reason
from fedsvc.domain.relations import Relation
from fedsvc.errors import QueueUnavailable
from fedsvc.queue.canceller import Canceller
from fedsvc.queue.durability import Durability
from fedsvc.queue.host_list import HostList, HostOrder
from fedsvc.queue.server_info import ServerInfo
from fedsvc.queue.spill import Spill
from fedsvc.worker.beats import Beats
from fedsvc.worker.memory import MemoryWatch
from fedsvc.worker.spiller import Spiller

HOST = "h0.example"
FULL = ServerInfo("valkey", "8", 80, 80, 80, 1.0, 100, "noeviction", True, True, True)
EMPTY = ServerInfo("valkey", "8", 10, 80, 80, 1.0, 100, "noeviction", True, True, True)


class Desk:
    """A queue with a spiller at hand. Memory is as full as a test says."""

    def __init__(self, queue: Queue, store: SpillStore) -> None:
        self.queue = queue
        self.store = store
        self.spill = Spill(queue.link, queue.keys, queue.settings)
        self.memory = MemoryWatch(queue.settings)
        self.spiller = Spiller(queue.settings, self.spill, store, self.memory, Beats("spill"))

    async def rounds(self) -> None:
        while await self.spiller.round():
            pass

    async def down(self, backlog: int) -> list[DeliveryId]:
        """Host 0 is down for an hour, and so many wait for it."""
        queue = self.queue
        for number in range(5):
            await queue.enqueue(f"bad{number}", path=f"/{number}")
            (admitted,) = await queue.admit(100)
            await queue.fail(admitted, wait_ms=1000 * HOUR_MS)
        await queue.pass_time(HOUR_MS)
        sent = []
        for number in range(backlog):
            queued = await queue.enqueue(f"n{number}", kind="Announce", priority=queue.BULK)
            sent.append(queued.id)
        while await self.parked() < backlog - 1:
            for admitted in await queue.admit(100):  # the probe that is due
                await queue.fail(admitted)
        return sent

    async def parked(self) -> int:
        return (await self.queue.conserved()).parked

    async def recover(self) -> list[DeliveryId]:
        """The host answers again and takes all. Returns what it got, in order."""
        queue, got = self.queue, []
        await queue.hosts.seen(HOST)
        idle = 0
        while idle < 20:
            taken = await queue.admit(100)
            idle = 0 if taken else idle + 1
            for admitted in taken:
                got.append(admitted.id)
                await queue.deliver(admitted)
            await self.spiller.round()
            await queue.pass_time(1000)
        return got


@pytest.fixture
async def desk(valkey: ValkeyServer, namespace: str, tmp_path: Path) -> AsyncIterator[Desk]:
    settings = Settings.from_environment({"DATABASE_URL": f"sqlite:///{tmp_path}/archive.db"})
    engine = create_engine(settings)
    try:
        async with engine.begin() as connection:
            await connection.run_sync(metadata.create_all)
        async with open_queue(valkey.url, namespace) as queue:
            yield Desk(queue, SpillStore(engine))
    finally:
        await engine.dispose()


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
    desk.memory.note(FULL)
    await desk.rounds()
    desk.memory.note(EMPTY)
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
    desk.memory.note(FULL)
    await desk.rounds()
    desk.memory.note(EMPTY)
    canceller = Canceller(desk.queue.link, desk.queue.keys, desk.queue.settings)
    assert (await canceller.cancel([sent[0]])).cancelled == 1
    assert await desk.recover() == sent[1:]


class Killed(Exception):
    """The process ends here."""


async def dies(*_: object) -> None:
    raise Killed


async def contents(queue: Queue) -> dict[bytes, bytes]:
    """Everything that the queue has in Redis."""
    names = await queue.link.call("KEYS", f"{queue.settings.namespace}:*")
    return {name: await queue.link.call("DUMP", name) for name in names}


async def put_back(queue: Queue, before: dict[bytes, bytes]) -> None:
    await queue.empty()
    for name, value in before.items():
        await queue.link.call("RESTORE", name, 0, value, "REPLACE")


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
    desk.memory.note(FULL)
    await desk.rounds()
    desk.memory.note(EMPTY)
    link = desk.queue.link
    await desk.queue.hosts.seen(HOST)
    (probe,) = await desk.queue.admit(1)
    await desk.queue.deliver(probe)
    link.durability = Durability(("WAIT", 1, 1), 1)  # there is no replica
    with pytest.raises(QueueUnavailable):
        await desk.spiller.round()
    assert len(await desk.store.batches(desk.queue.partition_of(0))) == 1


async def test_a_batch_that_sql_has_lost_keeps_others_waiting_for_some_minutes_only(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = await desk.down(300)
    desk.memory.note(FULL)
    await desk.rounds()
    desk.memory.note(EMPTY)
    read = desk.store.read

    async def lost(*_: object) -> None:
        return None

    monkeypatch.setattr(desk.store, "read", lost)
    later = [(await desk.queue.enqueue(f"late{n}", priority=desk.queue.BULK)).id for n in range(5)]
    assert not set(later) & set(await desk.recover()), "it may be there again soon"
    monkeypatch.setattr(Spiller, "MISSING", 0.0)
    assert set(later) <= set(await desk.recover())
    assert (await desk.queue.conserved()).counter("spilled") == 299
    monkeypatch.setattr(desk.store, "read", read)
    assert await desk.recover() == sent[1:]


async def test_a_batch_that_changed_meanwhile_stays(desk: Desk) -> None:
    sent = await desk.down(200)
    batch = await desk.spill.next_batch(desk.queue.partition_of(0))
    assert batch is not None
    canceller = Canceller(desk.queue.link, desk.queue.keys, desk.queue.settings)
    await canceller.cancel([sent[7]])
    assert not await desk.spill.commit(batch)
    assert (await desk.queue.conserved()).counter("spilled") == 0


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


async def test_what_is_in_sql_is_cancelled_when_it_comes_back(desk: Desk) -> None:
    sent = await desk.down(300)
    desk.memory.note(FULL)
    await desk.rounds()
    canceller = Canceller(desk.queue.link, desk.queue.keys, desk.queue.settings)
    assert await canceller.cancel([sent[5], sent[6]]) == (0, 2, 0)
    got = await desk.recover()
    assert got == [id for id in sent if id not in (sent[5], sent[6])]
    assert (await desk.queue.get(sent[5])).state is DeliveryState.CANCELLED
    await desk.queue.conserved()


async def test_all_of_a_host_are_cancelled_those_in_sql_as_well(desk: Desk) -> None:
    await desk.down(300)
    desk.memory.note(FULL)
    await desk.rounds()
    canceller = Canceller(desk.queue.link, desk.queue.keys, desk.queue.settings)
    cancelled = await canceller.cancel_host(HOST)
    assert (cancelled.cancelled, cancelled.in_flight) == (6, 299), (
        "one in the lane, five wait for their retry"
    )
    assert await desk.recover() == []
    stats = await desk.queue.conserved()
    assert (stats.counter("cancelled"), stats.pending) == (305, 0)


async def test_what_is_in_sql_does_not_outlive_its_time(desk: Desk) -> None:
    await desk.down(150)
    desk.memory.note(FULL)
    await desk.rounds()
    desk.memory.note(EMPTY)
    await desk.queue.pass_time(50 * HOUR_MS)
    await desk.rounds()
    await desk.queue.promote()
    for _ in range(10):
        for admitted in await desk.queue.admit(100):
            await desk.queue.fail(admitted)
        await desk.queue.pass_time(HOUR_MS)
    stats = await desk.queue.conserved()
    assert stats.counter("dead") >= 150
    assert stats.parked == 0


async def test_a_batch_that_is_cancelled_does_not_wait_for_those_before_it(desk: Desk) -> None:
    queue = desk.queue
    await desk.down(1)
    for origin in (A, B):
        for number in range(desk.spill.BATCH):
            await queue.enqueue(f"{origin}{number}", kind="Announce", priority=queue.BULK, origin=origin)
    while await desk.parked() < 2 * desk.spill.BATCH:
        for admitted in await queue.admit(100):
            await queue.fail(admitted)
    desk.memory.note(FULL)
    await desk.rounds()
    canceller = Canceller(queue.link, queue.keys, queue.settings)
    await canceller.cancel_host(HOST, origins=ONLY_B)
    await desk.rounds()
    assert (await queue.conserved()).counter("cancelled") == desk.spill.BATCH


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
    got = await desk.recover()
    assert got.index(first.id) < got.index(second.id)
    await queue.conserved()


A, B = "a.example", "b.example"
ONLY_A, ONLY_B = frozenset({A}), frozenset({B})


async def of_two_origins(desk: Desk) -> tuple[list[DeliveryId], list[DeliveryId]]:
    """Those of A and those of B that are in SQL, in one batch."""
    queue = desk.queue
    await desk.down(1)  # the one to probe with
    of: dict[str, list[DeliveryId]] = {A: [], B: []}
    for number in range(150):
        origin = A if number % 3 == 0 else B
        queued = await queue.enqueue(f"x{number}", kind="Announce", priority=queue.BULK, origin=origin)
        of[origin].append(queued.id)
    while await desk.parked() < 150:
        for admitted in await queue.admit(100):
            await queue.fail(admitted)
    desk.memory.note(FULL)
    await desk.rounds()
    assert (await queue.conserved()).counter("spilled") == 150
    return of[A], of[B]


async def test_in_sql_too_an_origin_sees_and_cancels_only_its_own(desk: Desk) -> None:
    queue = desk.queue
    mine, theirs = await of_two_origins(desk)
    assert await queue.reader.get(theirs[0], ONLY_A) is None
    shown = await queue.reader.get(mine[0], ONLY_A)
    assert shown is not None
    assert (shown.state, shown.origin) == (DeliveryState.PARKED, A)
    canceller = Canceller(queue.link, queue.keys, queue.settings)
    assert await canceller.cancel([mine[0], theirs[0]], origins=ONLY_A) == (0, 1, 1)
    got = await desk.recover()
    assert set(got) >= {*mine[1:], *theirs}
    assert mine[0] not in got
    assert (await queue.get(mine[0])).state is DeliveryState.CANCELLED


async def test_of_a_host_only_an_origins_own_are_cancelled_in_sql_too(desk: Desk) -> None:
    queue = desk.queue
    mine, theirs = await of_two_origins(desk)
    canceller = Canceller(queue.link, queue.keys, queue.settings)
    assert await canceller.cancel_host(HOST, origins=ONLY_A) == (0, len(mine), 0)
    assert await canceller.cancel_host(HOST, origins=ONLY_A) == (0, 0, 0), "nothing is told twice"
    got = await desk.recover()
    assert set(got) >= set(theirs)
    assert not set(got) & set(mine)
    assert {(await queue.get(id)).state for id in mine} == {DeliveryState.CANCELLED}
    await queue.conserved()


async def test_a_batch_of_which_each_origin_wants_nothing_more_comes_back_at_once(desk: Desk) -> None:
    queue = desk.queue
    await of_two_origins(desk)
    canceller = Canceller(queue.link, queue.keys, queue.settings)
    partition = queue.partition_of(0)
    await canceller.cancel_host(HOST, origins=ONLY_A)
    assert await desk.spill.due(partition, 10) == [], "the rest of it has to wait for its host"
    await canceller.cancel_host(HOST, origins=ONLY_B)
    assert len(await desk.spill.due(partition, 10)) == 1
    await desk.rounds()
    assert (await queue.conserved()).counter("spilled") == 0
