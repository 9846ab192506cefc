"""What a host cannot take now is parked at once, and wakes by itself: on a real server, with time moved."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable

import pytest
from servers.queue import Queue, open_queue
from servers.valkey import ValkeyServer

from fedsvc.domain.delivery import DeliveryState, Priority, Reason
from fedsvc.queue.consumer import Admitted, Shares, Signal
from fedsvc.queue.hosts import Circuit, HostPolicy
from fedsvc.queue.producer import Terms
from fedsvc.queue.stats import QueueStats

HOST = "h0.example"
SECOND_MS = 1000
HOUR_MS = 3600 * SECOND_MS
REFUSED = Signal.FAILED


@pytest.fixture
async def queue(valkey: ValkeyServer, namespace: str) -> AsyncIterator[Queue]:
    """With the limits that users get."""
    limits = {
        "FEDSVC_HOST_CONCURRENCY": "8",
        "FEDSVC_HOST_START": "1",
        "FEDSVC_HOST_RATE": "1000",
        "FEDSVC_HOST_BURST": "2000",
    }
    async with open_queue(valkey.url, namespace, **limits) as opened:
        yield opened


async def known(queue: Queue) -> None:
    """Host 0 has shown that it takes eight at a time."""
    for number in range(8):
        await queue.enqueue(f"first{number}")
        for admitted in await queue.admit(100):
            await queue.deliver(admitted)


async def opened(queue: Queue, parked: int = 10) -> list[int]:
    """Host 0 has failed five times in a row; so many wait. Returns their sequences."""
    for number in range(5):
        await queue.enqueue(f"bad{number}")
        (admitted,) = await queue.admit(100)
        await queue.fail(admitted)
    waiting = [(await queue.enqueue(f"later{number}")).id.sequence for number in range(parked)]
    assert await queue.admit(100) == []
    assert (await queue.hosts.get(HOST)).circuit is Circuit.OPEN
    return waiting


async def probe_due(queue: Queue) -> None:
    state = await queue.hosts.get(HOST)
    await queue.pass_time(max(1, state.next_probe_ms - await queue.now_ms() + 1))


async def events(queue: Queue) -> list[str]:
    """Kinds of events that watchers would see."""
    partition = queue.keys.partition(queue.partition_of(0))
    entries = await queue.link.call("XRANGE", partition.outcomes, "-", "+")
    return [
        fields[5].split(b'"event":"')[1].split(b'"')[0].decode() for _, fields in entries if fields[3] == b"0"
    ]


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


async def test_a_circuit_opens_on_failures_and_uses_up_no_retries_then(queue: Queue) -> None:
    waiting = await opened(queue)
    stats = await queue.conserved()
    assert (stats.parked, stats.retry, stats.open_circuits) == (10, 5, 1)
    for attempt in range(3):
        await probe_due(queue)
        (probe,) = await queue.admit(100)
        assert probe.id.sequence == waiting[0]
        assert (probe.record.attempts, probe.record.tries) == (attempt, 0)
        assert (await queue.hosts.get(HOST)).circuit is Circuit.HALF_OPEN
        assert await queue.admit(100) == [], "one probe at a time"
        await queue.fail(probe)
        delivery = await queue.get(probe.id)
        assert (delivery.state, delivery.attempts) == (DeliveryState.PARKED, attempt + 1)
    await queue.conserved()


async def test_a_last_retry_is_not_used_up_by_a_probe(queue: Queue) -> None:
    waiting = await opened(queue, 1)
    await probe_due(queue)
    (probe,) = await queue.admit(100)
    await queue.settle(probe, DeliveryState.DEAD, Reason.RETRIES_EXHAUSTED, signal=REFUSED)
    stats = await queue.conserved()
    assert (stats.counter("dead"), stats.parked) == (0, 1)
    await probe_due(queue)
    (probe,) = await queue.admit(100)
    assert (probe.id.sequence, probe.record.tries) == (waiting[0], 0)


async def test_probes_come_at_growing_intervals(queue: Queue) -> None:
    await opened(queue, 1)
    waits = []
    for _ in range(9):
        waits.append((await queue.hosts.get(HOST)).next_probe_ms - await queue.now_ms())
        await probe_due(queue)
        (probe,) = await queue.admit(100)
        await queue.fail(probe)
    wanted = [30, 60, 120, 240, 480, 960, 1800, 1800, 1800]
    for waited, seconds in zip(waits, wanted, strict=True):
        # up to a tenth sooner, so that not all come together
        assert 0.9 * seconds * SECOND_MS - SECOND_MS <= waited <= seconds * SECOND_MS


async def test_a_probe_that_succeeds_brings_the_backlog_back_in_order_and_in_stages(queue: Queue) -> None:
    waiting = await opened(queue, 200)
    await probe_due(queue)
    (probe,) = await queue.admit(100)
    await queue.deliver(probe)
    state = await queue.hosts.get(HOST)
    assert (state.circuit, state.failures) == (Circuit.CLOSED, 0)
    sent = [probe.id.sequence]
    by_second: list[int] = []
    for _ in range(40):
        before = len(sent)
        for _ in range(10):
            for admitted in await queue.admit(100):
                sent.append(admitted.id.sequence)
                await queue.deliver(admitted)
            await queue.pass_time(100)
        by_second.append(len(sent) - before)
    assert sent == waiting
    # 10 a second, doubling every 5 seconds
    assert 8 <= by_second[0] <= 14
    assert 14 <= by_second[5] <= 28
    stats = await queue.conserved()
    assert (stats.parked, stats.open_circuits) == (0, 0)


async def test_ten_hours_of_silence_and_then_all_of_5000_in_order(queue: Queue) -> None:
    """A host is down for ten hours with 5,000 parked; another takes its deliveries as if nothing was."""
    near = next(n for n in range(1, 100) if queue.partition_of(n) == queue.partition_of(0))
    await opened(queue, 0)
    places = [queue.place(0, f"/u/{n}") for n in range(5000)]
    await queue.producer.fan_out(queue.message("many"), places, Terms(Priority.BULK))
    partition = queue.partition_of(0)
    consumer = queue.consumer("a")

    async def take() -> list[Admitted]:
        return (await consumer.admit(partition, Shares(100, 20, 20, 60))).admitted

    while (await queue.conserved()).ready:
        for admitted in await take():
            await queue.fail(admitted)  # a probe
    began, probes = await queue.now_ms(), 0
    while await queue.now_ms() - began < 10 * HOUR_MS:
        await probe_due(queue)
        for admitted in await take():
            probes += 1
            assert admitted.record.tries == 0
            await queue.fail(admitted)
        other = await queue.enqueue(f"near{probes}", inbox=near)
        (quick,) = await take()
        assert quick.id == other.id, "the other host never waits"
        await queue.deliver(quick)
    assert 15 <= probes <= 40
    waiting = sorted(d for d in await lane(queue))
    while (await queue.hosts.get(HOST)).circuit is not Circuit.CLOSED:
        await probe_due(queue)
        (probe,) = await take()
        await queue.deliver(probe)
    first_after_ms, answered_at = 0, await queue.now_ms()
    got = [probe.id.sequence]
    while len(got) < 5000:
        await queue.pass_time(250)
        # what failed at first comes back by its own retries; only the backlog is counted
        for admitted in await take():
            await queue.deliver(admitted)
            if admitted.id.sequence in waiting:
                first_after_ms = first_after_ms or await queue.now_ms() - answered_at
                got.append(admitted.id.sequence)
    assert first_after_ms <= 2 * SECOND_MS
    # every fourth probe is the newest
    assert got[0] in (waiting[0], waiting[-1])
    assert got[1:] == [sequence for sequence in waiting if sequence != got[0]]
    took_s = (await queue.now_ms() - answered_at) / SECOND_MS
    assert took_s > 30, "in stages: 10 a second, doubling every 5 seconds"
    await queue.conserved()


async def lane(queue: Queue) -> list[int]:
    """Sequences that wait for host 0, of bulk priority."""
    prefix = queue.keys.partition(queue.partition_of(0)).prefix
    return [int(s) for s in await queue.link.call("LRANGE", f"{prefix}:lane:3:{HOST}", 0, -1)]


async def test_after_a_day_of_failing_a_host_is_down_and_up_again_when_it_answers(queue: Queue) -> None:
    await opened(queue, 1)
    while await events(queue) == []:
        await probe_due(queue)
        (probe,) = await queue.admit(100)
        await queue.fail(probe)
        down_since = (await queue.hosts.get(HOST)).down_since_ms
        assert await queue.now_ms() - down_since < 25 * HOUR_MS
    assert await queue.now_ms() - down_since >= 24 * HOUR_MS
    await probe_due(queue)
    (probe,) = await queue.admit(100)
    await queue.deliver(probe)
    assert await events(queue) == ["HOST_DOWN", "HOST_UP"]


async def test_a_host_that_was_heard_from_is_probed_at_once(queue: Queue) -> None:
    await opened(queue)
    assert await queue.hosts.seen(HOST)
    assert len(await queue.admit(100)) == 1
    assert not await queue.hosts.seen(HOST), "it is being probed"
    assert not await queue.hosts.seen("h1.example"), "it is not down"


async def test_a_probe_that_never_went_out_is_no_answer(queue: Queue) -> None:
    await opened(queue)
    await probe_due(queue)
    (probe,) = await queue.admit(100)
    await queue.settle(probe, DeliveryState.DEAD, Reason.BODY_MISSING)
    assert len(await queue.admit(100)) == 1, "the next is the probe"


async def test_one_delivery_that_fails_does_not_keep_a_host_down(queue: Queue) -> None:
    waiting = await opened(queue)
    probed = set()
    for _ in range(8):
        await probe_due(queue)
        (probe,) = await queue.admit(100)
        probed.add(probe.id.sequence)
        await queue.fail(probe)
    assert probed == {waiting[0], waiting[-1]}
    await queue.hosts.seen(HOST)


async def test_an_answer_of_any_kind_keeps_the_circuit_closed(queue: Queue) -> None:
    for number in range(20):
        await queue.enqueue(str(number))
        (admitted,) = await queue.admit(100)
        if number % 5 == 4:
            await queue.settle(admitted, DeliveryState.DEAD, Reason.NOT_FOUND, signal=Signal.ANSWERED)
        else:
            await queue.fail(admitted)
    assert (await queue.hosts.get(HOST)).circuit is Circuit.CLOSED


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


async def late(queue: Queue, stats: QueueStats) -> tuple[int, int]:
    return stats.counter("expired"), stats.counter("dead")


async def test_nothing_parked_outlives_its_time(queue: Queue) -> None:
    await opened(queue, 3)
    soon = await queue.enqueue("soon", expire_ms=await queue.now_ms() + 20 * SECOND_MS)
    assert await queue.admit(100) == []
    await queue.pass_time(22 * SECOND_MS)
    await queue.promote()
    assert await late(queue, await queue.conserved()) == (1, 0)
    ended = await queue.get(soon.id)
    assert (ended.state, ended.reason, ended.activity_id) == (
        DeliveryState.EXPIRED, Reason.EXPIRED, "https://me.example/soon",
    )  # fmt: skip
    await queue.hosts.pause(HOST)
    await queue.pass_time(49 * HOUR_MS)
    await queue.promote()
    while await queue.admit(100):
        pass
    stats = await queue.conserved()
    assert (stats.counter("dead"), stats.pending) == (8, 0)
    assert {d.reason for d in (await queue.dead.page(limit=10)).letters} == {Reason.MAX_AGE}


async def test_what_hosts_have_in_flight_is_set_right_if_it_was_ever_wrong(queue: Queue) -> None:
    await known(queue)
    prefix = queue.keys.partition(queue.partition_of(0)).prefix
    await queue.enqueue("1")
    await queue.enqueue("2")
    assert len(await queue.admit(100)) == 2
    packed = await queue.link.call("HGET", f"{prefix}:hosts", HOST)
    await queue.link.call("HSET", f"{prefix}:hosts", HOST, packed[:3] + b"\x00\x08" + packed[5:])
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


async def test_a_name_that_does_not_exist_is_given_a_day_whatever_is_set_for_other_failures(
    valkey: ValkeyServer, namespace: str
) -> None:
    async with open_queue(valkey.url, namespace, FEDSVC_HOST_DOWN_AFTER="3600") as queue:
        await queue.enqueue("1")
        missing = Signal.FAILED | Signal.NO_NAME
        for hours in (0, 12, 11.9, 0.2):
            await queue.pass_time(int(hours * HOUR_MS))
            assert await events(queue) == []
            await queue.promote()
            (tried,) = await queue.admit(1)
            await queue.settle(tried, DeliveryState.RETRY, Reason.DNS_NOT_FOUND, wait_ms=1, signal=missing)
        assert await events(queue) == ["HOST_DOWN"]


def gone(queue: Queue, admitted: Admitted) -> Awaitable[object]:
    signal = Signal.ANSWERED | Signal.INBOX_GONE
    return queue.settle(admitted, DeliveryState.DEAD, Reason.GONE, signal=signal)


async def test_a_host_is_gone_when_its_shared_inbox_says_so_for_a_day_and_nothing_there_works(
    queue: Queue,
) -> None:
    async def sent(number: int, *, shared: bool = True) -> Admitted:
        await queue.enqueue(str(number), path="/shared" if shared else "/other", shared_inbox=shared)
        (admitted,) = await queue.admit(1)
        return admitted

    await gone(queue, await sent(1))
    await queue.pass_time(25 * HOUR_MS)
    await queue.deliver(await sent(2, shared=False))
    await gone(queue, await sent(3))
    assert (await queue.hosts.get(HOST)).circuit is Circuit.CLOSED, "another inbox works"
    await queue.pass_time(23 * HOUR_MS)
    await gone(queue, await sent(4))
    await queue.pass_time(HOUR_MS)
    await gone(queue, await sent(5, shared=False))
    assert (await queue.hosts.get(HOST)).circuit is Circuit.CLOSED, "that was one person's inbox"
    await gone(queue, await sent(6))
    assert (await queue.hosts.get(HOST)).circuit is Circuit.GONE
    await gone(queue, await sent(7))
    assert [e for e in await events(queue) if e != "INBOX_GONE"] == ["HOST_DOWN"], "said once"
    await queue.deliver(await sent(8, shared=False))
    assert (await queue.hosts.get(HOST)).circuit is Circuit.CLOSED
    assert [e for e in await events(queue) if e != "INBOX_GONE"] == ["HOST_DOWN", "HOST_UP"]
    assert (await queue.conserved()).counter("dead") == 6, "each was tried: nobody is given up unheard"
