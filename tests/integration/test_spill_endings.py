"""What ends while it is in SQL: cancelled, or past its time; of one origin or of all."""

from __future__ import annotations

from typing import Any

import pytest
from servers.queue import HOUR_MS, SECOND_MS
from servers.spilling import EMPTY, FULL, HOST, Desk
from servers.structure import check

from fedsvc.archive.spill_store import SpillStore
from fedsvc.domain.delivery import DeliveryId, DeliveryState
from fedsvc.domain.relations import Relation, Rule
from fedsvc.queue.canceller import Canceller
from fedsvc.queue.producer import Terms

A, B = "a.example", "b.example"
ONLY_A, ONLY_B = frozenset({A}), frozenset({B})


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


@pytest.mark.parametrize(
    ("order", "rule", "kinds"),
    [
        ("", Rule.SAME_KEY, ("Announce", "Announce")),
        ("note", Rule.OLDER_UPDATES, ("Update", "Update")),
        ("note", Rule.OBJECT, ("Create", "Delete")),
    ],
)
async def test_what_is_in_sql_is_replaced_by_what_is_newer_for_the_same_inbox(
    desk: Desk, order: str, rule: Rule, kinds: tuple[str, str]
) -> None:
    queue = desk.queue
    await desk.down(1)
    old, new = kinds
    relation = Relation(order, "note", rule)
    places = [queue.place(0, path) for path in ("/a", "/b")]
    await queue.producer.fan_out(queue.message("note", old), places, Terms(queue.BULK, relation=relation))
    to_a, to_b = await queue.reader.list_activity(
        "https://me.example/note", after=None, limit=2, states=frozenset()
    )
    for n in range(300):
        await queue.enqueue(f"other{n}", kind="Announce", priority=queue.BULK)
    for admitted in await queue.admit(1000):  # the probe that is due
        await queue.fail(admitted)
    desk.memory.note(FULL)
    await desk.rounds()
    newer = await queue.enqueue("newer", path="/b", kind=new, priority=queue.BULK, relation=relation)
    desk.memory.note(EMPTY)
    got = await desk.recover()
    assert {to_a.id, newer.id} <= set(got)
    assert (await queue.get(to_b.id)).state is DeliveryState.SUPERSEDED
    assert (await queue.conserved()).pending == 5


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
    await desk.short()
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


async def test_what_is_past_its_time_does_not_go_to_sql_again_while_memory_is_short(desk: Desk) -> None:
    await desk.down(150)
    desk.memory.note(FULL)
    await desk.rounds()
    await desk.queue.pass_time(50 * HOUR_MS)
    for _ in range(3):
        await desk.spiller.round()
    stats = await desk.queue.conserved()
    assert (stats.counter("spilled"), stats.counter("dead")) == (0, 149)
    assert len(await desk.store.batches(desk.queue.partition_of(0))) == 1, "the one that came back"


async def test_those_that_get_too_old_one_by_one_do_not_take_their_batch_along_each_time(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue, written = desk.queue, 0
    write = SpillStore.write

    async def counted(self: SpillStore, *batch: Any) -> None:
        nonlocal written
        written += len(batch[3])
        await write(self, *batch)

    monkeypatch.setattr(SpillStore, "write", counted)
    await desk.down(1)  # the one to probe with
    for number in range(300):
        await queue.pass_time(SECOND_MS)
        await queue.enqueue(f"x{number}", priority=queue.BULK)
    while await desk.parked() < 301:
        for admitted in await queue.admit(100):
            await queue.fail(admitted)
    desk.memory.note(FULL)
    await desk.rounds()
    assert written == 300
    await queue.pass_time(48 * HOUR_MS - 300 * SECOND_MS)
    for _ in range(310):
        await queue.pass_time(SECOND_MS)
        await desk.rounds()
        for admitted in await queue.admit(100):
            await queue.fail(admitted)
    stats = await queue.conserved()
    assert (stats.counter("dead"), stats.counter("spilled")) == (301, 0)
    assert written < 3 * 300


async def test_those_that_expire_soon_in_the_middle_of_a_lane_stay_and_bring_no_batch_back(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue, written = desk.queue, 0
    write = SpillStore.write

    async def counted(self: SpillStore, *batch: Any) -> None:
        nonlocal written
        written += len(batch[3])
        await write(self, *batch)

    monkeypatch.setattr(SpillStore, "write", counted)
    await desk.down(1)
    now_ms = await queue.now_ms()
    fleeting: list[DeliveryId] = []
    lasting: list[DeliveryId] = []
    for number in range(300):
        soon = number % 10 == 5
        expire_ms = now_ms + (600 + number) * SECOND_MS if soon else 0
        queued = await queue.enqueue(f"x{number}", priority=queue.BULK, expire_ms=expire_ms)
        (fleeting if soon else lasting).append(queued.id)
    while await desk.parked() < 301:
        for admitted in await queue.admit(100):
            await queue.fail(admitted)
    desk.memory.note(FULL)
    await desk.rounds()
    await check(queue)
    for _ in range(10):
        await queue.pass_time(100 * SECOND_MS)
        await queue.promote()
        await desk.rounds()
    assert written == len(lasting)
    assert {(await queue.get(id)).state for id in fleeting} == {DeliveryState.EXPIRED}
    desk.memory.note(EMPTY)
    got = await desk.recover()
    assert [id for id in got if id in lasting] == lasting
    await check(queue)


async def test_what_comes_back_from_sql_expires_although_its_host_is_not_tried(desk: Desk) -> None:
    queue = desk.queue
    await desk.down(1)  # the one to probe with
    expire_ms = await queue.now_ms() + 2 * HOUR_MS  # what has less than one left stays here
    fleeting = (await queue.enqueue("fleeting", priority=queue.BULK, expire_ms=expire_ms)).id
    for number in range(150):
        await queue.enqueue(f"x{number}", priority=queue.BULK)
    while await desk.parked() < 151:
        for admitted in await queue.admit(100):
            await queue.fail(admitted)
    desk.memory.note(FULL)
    await desk.rounds()
    assert (await queue.conserved()).counter("spilled") == 151
    desk.memory.note(EMPTY)
    await queue.pass_time(2 * HOUR_MS + SECOND_MS)
    await queue.promote()
    assert (await queue.get(fleeting)).state is DeliveryState.PARKED, "all of it is in SQL"
    await desk.rounds()
    await queue.promote()
    assert (await queue.get(fleeting)).state is DeliveryState.EXPIRED
    await queue.conserved()


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
