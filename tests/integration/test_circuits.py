"""Hosts that fail: circuits, probes, and hosts that are down or gone; on a real server, with time moved."""

from __future__ import annotations

from collections.abc import Awaitable
from math import log

import pytest
from servers.queue import HOUR_MS, SECOND_MS, USUAL_LIMITS, Queue, open_queue, opened, probe_due
from servers.valkey import ValkeyServer

from fedsvc.domain.delivery import DeliveryState, Priority, Reason
from fedsvc.queue.canceller import Canceller
from fedsvc.queue.consumer import Admitted, Shares, Signal
from fedsvc.queue.hosts import Circuit
from fedsvc.queue.producer import Terms
from fedsvc.queue.stats import QueueStats

HOST = "h0.example"
REFUSED = Signal.FAILED


@pytest.fixture
def limits() -> dict[str, str]:
    return USUAL_LIMITS


async def events(queue: Queue) -> list[str]:
    """Kinds of events that watchers would see."""
    partition = queue.keys.partition(queue.partition_of(0))
    entries = await queue.link.call("XRANGE", partition.outcomes, "-", "+")
    return [
        fields[5].split(b'"event":"')[1].split(b'"')[0].decode() for _, fields in entries if fields[3] == b"0"
    ]


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


@pytest.mark.parametrize("state", [DeliveryState.RETRY, DeliveryState.DEAD])
async def test_a_probe_that_was_cancelled_on_its_way_does_not_wait_for_the_host_again(
    queue: Queue, state: DeliveryState
) -> None:
    await opened(queue, 1)
    await probe_due(queue)
    (probe,) = await queue.admit(100)
    canceller = Canceller(queue.link, queue.keys, queue.settings)
    assert (await canceller.cancel([probe.id])).in_flight == 1
    await queue.settle(probe, state, Reason.RETRIES_EXHAUSTED, signal=REFUSED)
    assert (await queue.get(probe.id)).state is DeliveryState.CANCELLED
    assert (await queue.conserved()).parked == 0


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
    by_second: list[tuple[int, float]] = []
    begun = ended = await queue.now_ms()
    for _ in range(40):
        before, second = len(sent), ended
        for _ in range(10):
            for admitted in await queue.admit(100):
                sent.append(admitted.id.sequence)
                await queue.deliver(admitted)
            await queue.pass_time(100)
        ended = await queue.now_ms()
        by_second.append((len(sent) - before, _recovering(ended - begun) - _recovering(second - begun)))
    assert sent == waiting
    for got, planned in (by_second[0], by_second[5]):
        assert 0.7 * planned <= got <= 1.3 * planned + 1
    stats = await queue.conserved()
    assert (stats.parked, stats.open_circuits) == (0, 0)


def _recovering(ms: int) -> float:
    """Deliveries until then: 10 a second, doubling every 5 seconds."""
    return 50 / log(2) * (2 ** (ms / 5000) - 1)


async def test_a_clock_that_is_set_back_does_not_stop_a_host_that_recovers(queue: Queue) -> None:
    await opened(queue, 50)
    await probe_due(queue)
    (probe,) = await queue.admit(100)
    await queue.deliver(probe)
    (second,) = await queue.admit(100)
    await queue.pass_time(-HOUR_MS)
    await queue.deliver(second)
    for _ in range(60):
        for admitted in await queue.admit(100):
            await queue.deliver(admitted)
        await queue.pass_time(SECOND_MS)
    assert (await queue.conserved()).parked == 0


async def test_a_clock_that_is_set_back_puts_no_probe_off_for_longer_than_an_interval(queue: Queue) -> None:
    await opened(queue, 3)
    await queue.pass_time(-20 * HOUR_MS)
    await queue.hosts.audit(queue.partition_of(0))
    await queue.pass_time(int(queue.settings.circuit_longest_probe * 1000))
    assert len(await queue.admit(100)) == 1
    await queue.conserved()


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
