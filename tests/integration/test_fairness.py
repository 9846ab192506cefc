"""Origins share the ready queue: however much one brings, others get their turn. Shown by the order in which
deliveries are handed out, not by time."""

from __future__ import annotations

from collections import Counter

import pytest
from servers.queue import Queue, open_queue
from servers.structure import check
from servers.valkey import ValkeyServer

from fedsvc.domain.delivery import DeliveryId, DeliveryState, Priority, Reason
from fedsvc.domain.relations import Relation, Rule
from fedsvc.queue.canceller import Canceller
from fedsvc.queue.consumer import Admitted, Shares, Signal
from fedsvc.queue.producer import Terms

A, B, C = "a.example", "b.example", "c.example"
WINDOW = 64
#: deliveries of one origin that go on in one turn
QUANTUM = 16


@pytest.fixture
def limits() -> dict[str, str]:
    return {"FEDSVC_READY_WINDOW": str(WINDOW)}


async def bring(queue: Queue, origin: str, n: int, name: str = "", priority: Priority = Queue.BULK) -> None:
    """An activity of this origin to so many inboxes of host 0."""
    message = queue.message(name or f"of-{origin}", "Announce", origin)
    await queue.producer.fan_out(message, [queue.place(0, f"/u/{i}") for i in range(n)], Terms(priority))


async def origin_of(queue: Queue, admitted: Admitted) -> str:
    message = await queue.consumer("a").message(admitted.id.partition, admitted.record.message)
    assert message is not None
    return message.origin


async def end(queue: Queue, taken: list[Admitted]) -> None:
    for admitted in taken:
        await queue.deliver(admitted)


async def take(queue: Queue, most: int = 10_000, step: int = 10) -> list[tuple[str, DeliveryId]]:
    """Deliveries as a worker gets and delivers them, with their origins."""
    taken: list[tuple[str, DeliveryId]] = []
    some: list[Admitted]
    some, more = [], True
    while (some or more) and len(taken) < most:
        shares = Shares(min(step, most - len(taken)), 0, 0, step)
        some, more, _ = await queue.consumer("a").admit(queue.partition_of(0), shares)
        taken += [(await origin_of(queue, admitted), admitted.id) for admitted in some]
        await end(queue, some)
    return taken


async def lines(queue: Queue) -> list[bytes]:
    return await queue.keys_of("line") + await queue.keys_of("lines")


async def test_a_large_fan_out_delays_others_by_no_more_than_the_window(queue: Queue) -> None:
    await bring(queue, A, 2000)
    await take(queue, 200)
    await bring(queue, B, 100)
    order = [origin for origin, _ in await take(queue)]
    assert Counter(order) == {A: 1800, B: 100}
    last = len(order) - 1 - order[::-1].index(B)
    assert order.index(B) <= WINDOW + QUANTUM
    assert last <= WINDOW + 2 * 100 + 2 * QUANTUM
    await queue.is_whole(delivered=2100)
    assert await lines(queue) == []


async def test_many_origins_take_turns_and_each_keeps_its_order(queue: Queue) -> None:
    await bring(queue, "first.example", WINDOW)
    for origin in (A, B, C):
        await bring(queue, origin, 160)
    taken = (await take(queue))[WINDOW:]
    for start in range(0, len(taken), 3 * QUANTUM):
        assert Counter(origin for origin, _ in taken[start : start + 3 * QUANTUM]) == dict.fromkeys(
            (A, B, C), QUANTUM
        )
    for each in (A, B, C):
        ids = [id.sequence for origin, id in taken if origin == each]
        assert ids == sorted(ids)


async def test_one_origin_alone_keeps_its_order(queue: Queue) -> None:
    sent = []
    for part in range(5):
        await bring(queue, A, 100, f"part-{part}")
        sent += [id for _, id in await take(queue, 20)]
    assert (await queue.conserved()).ready == 400
    sent += [id for _, id in await take(queue)]
    assert sent == sorted(sent, key=lambda id: id.sequence)
    assert len(sent) == 500


async def test_a_short_queue_has_no_lines(queue: Queue) -> None:
    for turn in range(3):
        await bring(queue, A, WINDOW, f"x{turn}")
        assert await lines(queue) == []
        # what workers have is not what waits
        some = await queue.admit(WINDOW)
        assert len(some) == WINDOW
    await bring(queue, B, WINDOW + 1)
    assert await lines(queue) != []
    assert (await queue.conserved()).ready == WINDOW + 1


async def test_each_priority_has_lines_of_its_own(queue: Queue) -> None:
    await bring(queue, A, 3 * WINDOW)
    await bring(queue, A, 5, "urgent", Priority.URGENT)
    shares = Shares(10, 10, 0, 0)
    some = (await queue.consumer("a").admit(queue.partition_of(0), shares)).admitted
    assert Counter(a.record.priority for a in some) == {Priority.URGENT: 5, Priority.BULK: 5}
    by_priority = (await queue.conserved()).priorities
    assert [by_priority[p].ready for p in Priority] == [0, 0, 3 * WINDOW - 5]
    await bring(queue, B, 3 * WINDOW, "many-urgent", Priority.URGENT)
    urgent = []
    while handed := (
        await queue.consumer("a").admit(queue.partition_of(0), Shares(50, 50, 0, 0), only_urgent=True)
    ).admitted:
        urgent += handed
    assert len(urgent) == 3 * WINDOW
    assert {a.record.priority for a in urgent} == {Priority.URGENT}


async def test_a_worker_is_told_of_what_stands_in_lines(queue: Queue) -> None:
    await bring(queue, A, 3 * WINDOW)
    handed = await queue.consumer("a").admit(queue.partition_of(0), Shares(WINDOW, 0, 0, WINDOW))
    taken, more = len(handed.admitted), handed.more
    assert more
    while more:
        some, more, _ = await queue.consumer("a").admit(queue.partition_of(0), Shares(WINDOW, 0, 0, WINDOW))
        taken += len(some)
    assert taken == 3 * WINDOW
    await check(queue)


async def test_what_stands_in_a_line_is_shown_as_ready_and_has_its_age(queue: Queue) -> None:
    await bring(queue, B, WINDOW)
    await bring(queue, A, 1)
    (shown,) = await queue.reader.list_activity(
        f"https://me.example/of-{A}", after=None, limit=10, states=frozenset()
    )
    assert shown.state is DeliveryState.READY
    await queue.pass_time(40_000)
    stats = await queue.conserved()
    assert stats.priorities[Priority.BULK].oldest_age_ms == pytest.approx(40_000, abs=5000)
    await take(queue, WINDOW)
    stats = await queue.conserved()
    assert stats.ready == 1
    assert stats.priorities[Priority.BULK].oldest_age_ms == pytest.approx(40_000, abs=5000), (
        "it is in its line"
    )


async def test_cancelled_and_expired_deliveries_leave_their_lines(queue: Queue) -> None:
    canceller = Canceller(queue.link, queue.keys, queue.settings)
    await bring(queue, A, WINDOW + 500)
    message, soon = queue.message("soon", origin=A), await queue.now_ms() + 30_000
    await queue.producer.fan_out(
        message, [queue.place(0, f"/x/{i}") for i in range(50)], Terms(Priority.BULK, expire_ms=soon)
    )
    await bring(queue, B, 30)
    ids = [
        d.id
        for d in await queue.reader.list_activity(
            f"https://me.example/of-{A}", after=None, limit=1000, states=frozenset()
        )
    ]
    assert await canceller.cancel(ids[WINDOW : WINDOW + 499]) == (499, 0, 0)
    await queue.pass_time(31_000)
    await queue.promote()
    await check(queue)
    await queue.is_whole(ready=WINDOW + 1 + 30, cancelled=499, expired=50)
    order = [origin for origin, _ in await take(queue)]
    assert order[:WINDOW] == [A] * WINDOW
    assert Counter(order[WINDOW:]) == {A: 1, B: 30}
    await check(queue)


async def test_lines_in_which_nobody_stands_are_forgotten(queue: Queue) -> None:
    canceller = Canceller(queue.link, queue.keys, queue.settings)
    await bring(queue, A, WINDOW + 100)
    await bring(queue, B, 100)
    await canceller.cancel_host("h0.example")
    await queue.is_whole(cancelled=WINDOW + 200)
    assert await lines(queue) != []
    # who comes now overtakes nobody
    await bring(queue, B, 1, "new")
    assert len(await queue.admit(10)) == 1
    await queue.promote()
    assert await lines(queue) == []
    await check(queue)


async def test_a_line_that_was_cancelled_holds_up_nobody_behind_it(queue: Queue) -> None:
    canceller = Canceller(queue.link, queue.keys, queue.settings)
    await bring(queue, A, WINDOW + 1500)
    await bring(queue, B, 20)
    await canceller.cancel_activity(f"https://me.example/of-{A}")
    got = 0
    while (handed := await queue.consumer("a").admit(queue.partition_of(0), Shares(5, 0, 0, 5))).more:
        got += len(handed.admitted)
    assert got + len(handed.admitted) == 20
    await check(queue)


async def test_newer_deliveries_take_back_what_stands_in_a_line(queue: Queue) -> None:
    await bring(queue, B, WINDOW)
    state = Relation("", "state", Rule.SAME_KEY)
    old = await queue.enqueue("old", priority=Priority.BULK, origin=A, relation=state)
    new = await queue.enqueue("new", priority=Priority.BULK, origin=A, relation=state)
    assert (await queue.get(old.id)).state is DeliveryState.SUPERSEDED
    assert [id for origin, id in await take(queue) if origin == A] == [new.id]


async def test_an_order_is_kept_across_lines(queue: Queue) -> None:
    await bring(queue, B, WINDOW)
    sent = [
        (await queue.enqueue(str(n), priority=Priority.BULK, origin=A, relation=Relation("key"))).id
        for n in range(5)
    ]
    assert [id for origin, id in await take(queue) if origin == A] == sent
    await check(queue)


async def test_retries_go_straight_to_the_stream(queue: Queue) -> None:
    await bring(queue, A, 1, "first")
    (admitted,) = await queue.admit(1)
    await queue.settle(admitted, DeliveryState.RETRY, Reason.OK, wait_ms=1000)
    await bring(queue, A, 3 * WINDOW)
    await queue.pass_time(2000)
    await queue.promote()
    order = [id for _, id in await take(queue)]
    assert order.index(admitted.id) == WINDOW


async def test_a_worker_that_dies_and_one_that_comes_back_find_everything(queue: Queue) -> None:
    await bring(queue, A, 300)
    await bring(queue, B, 20)
    lost = [(await queue.admit(30, "dead")) for _ in range(4)]
    assert sum(map(len, lost)) == 120
    await queue.pass_time(60_000)
    again = await queue.reclaim("a") + await queue.reclaim("a")
    assert {a.id for a in again} == {a.id for some in lost for a in some}
    await check(queue)
    await end(queue, again)
    assert len(await take(queue)) == 200
    await queue.is_whole(delivered=320)


async def test_what_goes_on_from_a_line_to_a_busy_host_is_parked(
    valkey: ValkeyServer, namespace: str
) -> None:
    limits = {"FEDSVC_READY_WINDOW": "4", "FEDSVC_HOST_CONCURRENCY": "2", "FEDSVC_HOST_START": "2"}
    async with open_queue(valkey.url, namespace, **limits) as queue:
        await bring(queue, A, 100)
        some = await queue.admit(10)
        assert len(some) == 2
        await check(queue)
        got = 0
        while some:
            got += len(some)
            for admitted in some:
                await queue.settle(admitted, DeliveryState.DELIVERED, signal=Signal.ANSWERED)
            some = await queue.admit(10)
        assert got == 100
        await queue.is_whole(delivered=100)


async def test_one_script_parks_no_more_out_of_lines_than_out_of_a_stream(queue: Queue) -> None:
    """Redis serves nobody else meanwhile, and one of forty is as many as it takes to go on and on."""
    partition, limit = queue.partition_of(0), 16
    paused = next(n for n in range(1, 99) if queue.partition_of(n) == partition)
    await queue.hosts.pause(f"h{paused}.example")
    places = [queue.place(0 if n % 40 == 39 else paused, f"/u/{n}") for n in range(2000)]
    await queue.producer.fan_out(queue.message("1", "Announce", A), places, Terms(Queue.BULK))
    delivered, parked, more = 0, 0, True
    while more:
        some, more, _ = await queue.consumer("a").admit(partition, Shares(limit, 0, 0, limit))
        now_parked = (await queue.hosts.get(f"h{paused}.example")).parked
        assert now_parked - parked <= 4 * limit + 64 + QUANTUM  # as in lua/admit.lua, and a turn's rest
        delivered, parked = delivered + len(some), now_parked
        await end(queue, some)
    assert (delivered, parked) == (50, 1950)
    assert await lines(queue) == []


async def test_a_count_that_is_off_is_set_right_when_the_lines_are_empty(queue: Queue) -> None:
    prefix = queue.keys.partition(queue.partition_of(0)).prefix
    await queue.link.call("HSET", f"{prefix}:counters", "line:3", 5)
    handed = await queue.consumer("a").admit(queue.partition_of(0), Shares(5, 0, 0, 5))
    assert not handed.more, "no worker goes round in circles for what is not there"
    await queue.is_whole()
