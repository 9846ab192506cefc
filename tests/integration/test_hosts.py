"""What a host cannot take now is parked at once, and wakes by itself: on a real server, with time moved."""

from __future__ import annotations

import pytest
from servers.queue import HOUR_MS, SECOND_MS, USUAL_LIMITS, Queue, known, open_queue, opened
from servers.valkey import ValkeyServer

from fedsvc.domain.delivery import DeliveryId, DeliveryState, Priority, Reason
from fedsvc.domain.inbox import Inbox, host_of
from fedsvc.queue.consumer import Shares, Signal
from fedsvc.queue.hosts import Circuit, HostPolicy, HostRecord
from fedsvc.queue.producer import Terms

HOST = "h0.example"
REFUSED = Signal.FAILED


@pytest.fixture
def limits() -> dict[str, str]:
    return USUAL_LIMITS


async def test_a_new_host_gets_one_until_it_has_answered_then_more_and_eight_at_most(queue: Queue) -> None:
    for number in range(100):
        await queue.enqueue(str(number))
    at_once = []
    for _ in range(8):
        taken = await queue.admit(100)
        at_once.append(len(taken))
        for admitted in taken:
            await queue.deliver(admitted)
    assert at_once == [1, 2, 4, 8, 8, 8, 8, 8]


@pytest.mark.parametrize("port", ["", ":8443"])
@pytest.mark.parametrize("host", ["s", "remote.example", "10.0.0.1", "2001:db8::1", "x" * 60 + ".example"])
async def test_redis_and_we_mean_the_same_host_by_an_inbox(queue: Queue, host: str, port: str) -> None:
    url = f"https://{f'[{host}]' if ':' in host else host}{port}/u/https://other.example/inbox"
    place = queue.producer.place(Inbox(url, host))
    for number in range(3):
        await queue.producer.enqueue(queue.message(str(number)), place, Terms(Priority.URGENT))
    taken = (await queue.consumer("a").admit(place.partition, Shares(3, 3, 0, 0))).admitted
    assert [(a.record.inbox, host_of(a.record.inbox)) for a in taken] == [(url, host)]
    shown = await queue.hosts.get(host)
    assert shown is not None
    assert (shown.host, shown.in_flight, shown.parked) == (host, 1, 2)
    await queue.fail(taken[0])
    shown = await queue.hosts.get(host)
    assert shown is not None
    assert (shown.in_flight, shown.failures) == (0, 1)


async def test_a_look_at_what_is_urgent_alone_lets_nobody_overtake_who_waits_in_a_lane(queue: Queue) -> None:
    queued = [await queue.enqueue(str(number)) for number in range(2)]
    (first,) = await queue.admit(100)
    await queue.deliver(first)
    queued.append(await queue.enqueue("2"))
    urgent = await queue.consumer("a").admit(first.id.partition, Shares(100, 100, 0, 0), only_urgent=True)
    assert urgent.admitted == []
    assert [a.id for a in await queue.admit(100)] == [each.id for each in queued[1:]]


async def test_what_a_full_host_cannot_take_is_parked_and_comes_in_order(queue: Queue) -> None:
    await known(queue)
    ids = [(await queue.enqueue(str(number))).id for number in range(30)]
    taken = await queue.admit(100)
    assert [a.id for a in taken] == ids[:8]
    assert (await queue.get(ids[8])).state is DeliveryState.PARKED
    assert (await queue.conserved()).parked == 22
    assert await queue.admit(100) == [], "there is no slot"
    order = []
    while taken:
        first, *taken = taken
        order.append(first.id)
        await queue.deliver(first)
        taken += await queue.admit(100)
    assert order == ids
    assert (await queue.conserved()).pending == 0


async def test_one_full_host_keeps_no_other_waiting(queue: Queue) -> None:
    near = next(n for n in range(1, 100) if queue.partition_of(n) == queue.partition_of(0))
    for number in range(200):
        await queue.enqueue(str(number))
    other = await queue.enqueue("other", inbox=near)
    taken = await queue.admit(10) + await queue.admit(10)
    assert [a.id for a in taken][1:] == [other.id]


async def test_slots_are_shared_by_all_workers(queue: Queue) -> None:
    await known(queue)
    for number in range(20):
        await queue.enqueue(str(number))
    a = await queue.admit(5, worker="a")
    assert (len(a), len(await queue.admit(20, worker="b"))) == (5, 3)
    await queue.deliver(a[0])
    assert len(await queue.admit(20, worker="c")) == 1


async def test_slots_of_a_dead_worker_come_back_with_what_it_held(queue: Queue) -> None:
    await known(queue)
    for number in range(20):
        await queue.enqueue(str(number))
    assert len(await queue.admit(100, worker="dead")) == 8
    await queue.pass_time(int(queue.settings.lease * 1000) + 1)
    taken = await queue.reclaim("b")
    assert len(taken) == 8
    assert await queue.admit(100, worker="b") == []
    for admitted in taken:
        await queue.deliver(admitted)
    assert len(await queue.admit(100, worker="b")) == 8


async def test_failures_halve_what_is_in_flight_and_success_brings_it_back(queue: Queue) -> None:
    await known(queue)
    await queue.enqueue("1")
    (admitted,) = await queue.admit(1)
    await queue.fail(admitted)
    assert (await queue.hosts.get(HOST)).limit == 4
    await queue.enqueue("2")
    (admitted,) = await queue.admit(1)
    await queue.fail(admitted)
    assert (await queue.hosts.get(HOST)).limit == 4, "those that were on their way together count once"
    for number in range(60):
        await queue.enqueue(f"ok{number}")
        (admitted,) = await queue.admit(1)
        await queue.deliver(admitted)
    assert (await queue.hosts.get(HOST)).limit == 8


async def test_a_host_that_becomes_slow_gets_less(queue: Queue) -> None:
    await known(queue)
    for number in range(30):
        await queue.enqueue(f"fast{number}")
        (admitted,) = await queue.admit(1)
        await queue.deliver(admitted, latency_ms=20)
    for number in range(20):
        await queue.enqueue(f"slow{number}")
        (admitted,) = await queue.admit(1)
        await queue.deliver(admitted, latency_ms=3000)
        await queue.pass_time(SECOND_MS)
    assert (await queue.hosts.get(HOST)).limit < 4


async def test_retry_after_pauses_the_whole_host(queue: Queue) -> None:
    await known(queue)
    await queue.enqueue("1")
    (admitted,) = await queue.admit(1)
    await queue.settle(
        admitted, DeliveryState.RETRY, Reason.RATE_LIMITED, wait_ms=120_000,
        signal=Signal.ANSWERED | Signal.SLOWED, pause_ms=90_000,
    )  # fmt: skip
    for number in range(5):
        await queue.enqueue(f"more{number}")
    assert await queue.admit(100) == []
    await queue.pass_time(89 * SECOND_MS)
    assert await queue.admit(100) == []
    await queue.pass_time(2 * SECOND_MS)
    assert len(await queue.admit(100)) == 4, "half of what it was"
    assert (await queue.hosts.get(HOST)).circuit is Circuit.CLOSED


@pytest.mark.parametrize("failed", [False, True])
async def test_a_clock_that_is_set_back_makes_no_pause_longer(queue: Queue, failed: bool) -> None:
    signal = Signal.FAILED if failed else Signal.ANSWERED
    await known(queue)
    await queue.enqueue("1")
    (admitted,) = await queue.admit(1)
    await queue.settle(
        admitted, DeliveryState.RETRY, Reason.UNAVAILABLE, wait_ms=20 * HOUR_MS,
        signal=signal | Signal.SLOWED, pause_ms=90_000,
    )  # fmt: skip
    await queue.enqueue("2")
    assert await queue.admit(100) == []
    await queue.pass_time(-20 * HOUR_MS)
    for _ in range(2):  # not longer with each look
        await queue.hosts.audit(queue.partition_of(0))
        await queue.pass_time(44 * SECOND_MS)
        assert await queue.admit(100) == []
    state = await queue.hosts.get(HOST)
    assert max(state.last_success_ms, state.last_failure_ms) <= await queue.now_ms()
    await queue.pass_time(3 * SECOND_MS)
    assert len(await queue.admit(100)) == 1


async def test_a_clock_that_is_set_back_does_not_lengthen_the_pause_of_an_operator(queue: Queue) -> None:
    await known(queue)
    await queue.pass_time(SECOND_MS)
    await queue.hosts.pause(HOST, duration_ms=90_000)
    await queue.enqueue("1")
    await queue.pass_time(-20 * HOUR_MS)
    await queue.hosts.audit(queue.partition_of(0))
    await queue.pass_time(89 * SECOND_MS)
    assert await queue.admit(100) == []
    await queue.pass_time(4 * SECOND_MS)
    assert len(await queue.admit(100)) == 1


async def test_a_clock_that_is_set_back_does_not_keep_a_host_with_a_rate_waiting(queue: Queue) -> None:
    await queue.hosts.set_policy(HOST, HostPolicy(rate=2.0, burst=1.0))
    for n in range(3):
        await queue.enqueue(str(n))
    (admitted,) = await queue.admit(100)
    await queue.deliver(admitted)
    await queue.pass_time(-20 * HOUR_MS)
    await queue.hosts.audit(queue.partition_of(0))
    await queue.pass_time(SECOND_MS)
    assert len(await queue.admit(100)) == 1


async def test_a_rate_is_kept_and_the_next_comes_when_there_is_a_token(queue: Queue) -> None:
    await known(queue)
    await queue.hosts.set_policy(HOST, HostPolicy(rate=2.0, burst=4.0))
    await queue.pass_time(10 * SECOND_MS)
    for number in range(20):
        await queue.enqueue(str(number))
    sent = []
    for _ in range(6):
        taken = await queue.admit(100)
        sent.append(len(taken))
        for admitted in taken:
            await queue.deliver(admitted)
        await queue.pass_time(SECOND_MS)
    assert sent == [4, 2, 2, 2, 2, 2]
    state = await queue.hosts.set_policy(HOST, HostPolicy())
    assert state.policy == HostPolicy()
    assert len(await queue.admit(100)) == 6


async def test_a_limit_that_is_set_later_counts_from_then_on(valkey: ValkeyServer, namespace: str) -> None:
    """What went to a host while its rate had no limit is no debt."""
    async with open_queue(valkey.url, namespace, FEDSVC_HOST_BURST="1") as queue:
        for number in range(50):
            await queue.enqueue(f"before{number}")
        for admitted in await queue.admit(100):
            await queue.deliver(admitted)
        await queue.hosts.set_policy(HOST, HostPolicy(rate=1.0, burst=2.0))
        for number in range(5):
            await queue.enqueue(f"after{number}")
        await queue.pass_time(2 * SECOND_MS)
        assert len(await queue.admit(100)) == 2


async def test_what_leaves_a_line_while_its_host_has_no_room_goes_straight_to_its_lane(
    valkey: ValkeyServer, namespace: str
) -> None:
    limits = {"FEDSVC_READY_WINDOW": "2", "FEDSVC_HOST_CONCURRENCY": "1", "FEDSVC_HOST_START": "1"}
    async with open_queue(valkey.url, namespace, **limits) as queue:
        sent = [(await queue.enqueue(f"{number}", priority=Priority.BULK)).id for number in range(12)]
        taken, shares = [], Shares(8, 0, 0, 8)
        consumer = queue.consumer("a")
        for _ in range(3 * len(sent)):
            for admitted in (await consumer.admit(queue.partition_of(0), shares)).admitted:
                taken.append(admitted.id)
                await queue.deliver(admitted)
        assert taken == sent, "in order"
        stream = queue.keys.partition(queue.partition_of(0)).ready(Priority.BULK)
        told = await queue.link.call("XINFO", "STREAM", stream)
        assert dict(zip(told[::2], told[1::2], strict=True))[b"entries-added"] == 2, "the window, once"
        await queue.is_whole(delivered=len(sent))


async def test_a_policy_bounds_what_is_in_flight(queue: Queue) -> None:
    await queue.hosts.set_policy(HOST, HostPolicy(max_in_flight=2))
    await known(queue)
    for number in range(10):
        await queue.enqueue(str(number))
    assert len(await queue.admit(100)) == 2
    assert (await queue.hosts.get(HOST)).policy == HostPolicy(2)


async def test_a_pause_holds_until_it_ends_or_is_ended(queue: Queue) -> None:
    await queue.enqueue("1")
    state = await queue.hosts.pause(HOST, duration_ms=60_000, reason="they asked")
    assert (state.circuit, state.pause_reason) == (Circuit.PAUSED, "they asked")
    assert await queue.admit(100) == []
    await queue.pass_time(61 * SECOND_MS)
    (admitted,) = await queue.admit(100)
    await queue.deliver(admitted)
    await queue.hosts.pause(HOST)
    await queue.enqueue("2")
    await queue.pass_time(1000 * HOUR_MS)
    assert await queue.admit(100) == []
    assert (await queue.hosts.resume(HOST)).circuit is Circuit.CLOSED


async def test_what_is_parked_says_when_it_is_tried_next_if_that_is_known(queue: Queue) -> None:
    await known(queue)
    ids = [(await queue.enqueue(str(number))).id for number in range(9)]
    await queue.admit(100)

    async def next_try() -> int:
        delivery = await queue.get(ids[8])
        assert delivery.state is DeliveryState.PARKED
        return delivery.next_attempt_ms

    assert await next_try() == 0, "once one of the eight that are in flight has been answered"
    paused = await queue.hosts.pause(HOST, duration_ms=60 * SECOND_MS)
    assert await next_try() == paused.paused_until_ms > 0
    await queue.hosts.pause(HOST)
    assert await next_try() == 0, "once an operator says so"
    await queue.hosts.pause(HOST, duration_ms=3 * 24 * HOUR_MS)
    assert await next_try() == 0, "it does not live as long"


async def test_what_waits_for_a_host_that_is_down_is_tried_with_the_next_probe(queue: Queue) -> None:
    (first, *_) = await opened(queue)
    id = DeliveryId(queue.partition_of(0), first)
    probe_ms = (await queue.hosts.get(HOST)).next_probe_ms
    assert (await queue.get(id)).next_attempt_ms == probe_ms > await queue.now_ms()


async def test_urgent_is_first_in_a_host_s_lane_and_bulk_is_not_forgotten(queue: Queue) -> None:
    await known(queue)
    for number in range(40):
        await queue.enqueue(f"b{number}", priority=Priority.BULK)
    taken = await queue.admit(100)
    for number in range(40):
        await queue.enqueue(f"u{number}", priority=Priority.URGENT)
    order: list[Priority] = []
    while taken:
        first, *taken = taken
        order.append(first.record.priority)
        await queue.deliver(first)
        taken += await queue.admit(100)
    after = order[8:48]
    assert after.count(Priority.BULK) in range(4, 14), "between a tenth and a third"
    await queue.conserved()


async def test_what_hosts_have_in_flight_is_set_right_if_it_was_ever_wrong(queue: Queue) -> None:
    await known(queue)
    prefix = queue.keys.partition(queue.partition_of(0)).prefix
    await queue.enqueue("1")
    await queue.enqueue("2")
    assert len(await queue.admit(100)) == 2
    host = HostRecord.unpack(await queue.link.call("HGET", f"{prefix}:hosts", HOST))
    await queue.link.call("HSET", f"{prefix}:hosts", HOST, host._replace(flying=8).pack())
    assert (await queue.hosts.get(HOST)).in_flight == 8
    assert await queue.hosts.audit(queue.partition_of(0)) == (1, 0, 0)
    assert (await queue.hosts.get(HOST)).in_flight == 2


async def test_a_host_that_nothing_was_sent_to_for_long_is_forgotten(queue: Queue) -> None:
    await known(queue)
    await queue.pass_time(29 * 24 * HOUR_MS)
    assert await queue.hosts.audit(queue.partition_of(0)) == (0, 0, 0)
    await queue.pass_time(2 * 24 * HOUR_MS)
    assert await queue.hosts.audit(queue.partition_of(0)) == (0, 1, 0)
    assert (await queue.hosts.get(HOST)).last_success_ms == 0


@pytest.mark.parametrize("sent_since", [False, True])
async def test_nothing_is_left_of_a_pause_once_its_host_is_forgotten(queue: Queue, sent_since: bool) -> None:
    await queue.hosts.pause(HOST, duration_ms=60 * SECOND_MS, reason="they asked")
    await queue.pass_time(61 * SECOND_MS)
    if sent_since:
        await known(queue)
    await queue.pass_time(31 * 24 * HOUR_MS)
    assert await queue.hosts.audit(queue.partition_of(0)) == (0, 1, 0)
    prefix = queue.keys.partition(queue.partition_of(0)).prefix
    assert await queue.link.call("EXISTS", f"{prefix}:hosts", f"{prefix}:pauses") == 0


async def test_live_workers_keep_what_they_do_when_redis_was_away(queue: Queue) -> None:
    await queue.enqueue("1")
    (held,) = await queue.admit(1, worker="a")
    await queue.reclaim("b")
    await queue.pass_time(10 * HOUR_MS, watched=False)
    assert await queue.reclaim("b") == [], "nobody could renew a lease"
    await queue.reclaim("a")
    await queue.pass_time(int(queue.settings.lease * 900))
    assert await queue.reclaim("b") == []
    assert (await queue.settle(held, DeliveryState.DELIVERED)).passed_over == set()
