"""What runs of schedules do to the queue, on a real server."""

from __future__ import annotations

from typing import Any, cast

import pytest
from servers.key_ring import ADA, KeyRing, fresh
from servers.queue import Queue, one_partition_away

from fedsvc.domain.schedule import FanOutTemplate, Recurrence, Schedule, Task
from fedsvc.errors import InvalidKey, QueueUnavailable
from fedsvc.handlers.registry import Registry
from fedsvc.queue.canceller import Canceller
from fedsvc.queue.hosts import Circuit
from fedsvc.worker.archive_purger import ArchivePurger
from fedsvc.worker.scheduled_runs import ScheduledRuns

INBOXES = tuple(f"https://h{n}.example/inbox" for n in range(20))
TEMPLATE = (
    b'{"id":"https://me.example/{run_id}","type":"Like","actor":"https://me.example/u/ada",'
    b'"object":"https://other.example/1"}'
)
HOURLY = Schedule(
    "hourly", Recurrence(interval_ms=3_600_000), fan_out=FanOutTemplate(TEMPLATE, INBOXES, key_id=ADA)
)
FIRST_MS, SECOND_MS = 1_800_000_000_000, 1_800_003_600_000


def runs_of(ring: KeyRing) -> ScheduledRuns:
    """Without a database: none of these runs purges."""
    q = ring.queue
    return ScheduledRuns(
        q.settings, q.link, q.keys, Registry.built_in(), ring.registry, q.outcomes, q.hosts,
        cast(ArchivePurger, None),
    )  # fmt: skip


def schedule(**does: Any) -> Schedule:
    return Schedule("s", Recurrence(interval_ms=60_000), **does)


async def down(queue: Queue) -> int:
    """How many hosts are to be probed later."""
    states = [await queue.hosts.get(f"h{n}.example") for n in (0, 1)]
    now_ms = await queue.now_ms()
    return sum(state.circuit is Circuit.OPEN and state.next_probe_ms > now_ms for state in states)


@pytest.mark.parametrize(("arguments", "left"), [({}, 0), ({"limit": 1}, 1), ({"limit": 0}, 0)])
async def test_hosts_that_are_down_are_probed_now_as_many_as_it_is_told(
    ring: KeyRing, arguments: dict[str, int], left: int
) -> None:
    for inbox in (0, 1):
        for number in range(ring.queue.settings.circuit_failures):
            await ring.queue.enqueue(str(number), inbox=inbox)
            (admitted,) = await ring.queue.admit(100, inbox=inbox)
            await ring.queue.fail(admitted)
    assert await down(ring.queue) == 2
    await runs_of(ring).carry_out(schedule(task=Task.HOST_PROBE, arguments=arguments), 60_000)
    assert await down(ring.queue) == left


async def test_an_activity_that_its_caller_may_have_so_large_is_sent(ring: KeyRing) -> None:
    await ring.registry.put(ADA, fresh())
    summary = b"x" * ring.queue.settings.max_activity_bytes
    template = FanOutTemplate(
        b'{"id":"https://me.example/{run_id}","type":"Follow","actor":"https://me.example/u/ada",'
        b'"object":"https://h0.example/u/eve","summary":"%s"}' % summary,
        ("https://h0.example/inbox",),
        ADA,
    )
    await runs_of(ring).carry_out(schedule(fan_out=template), 60_000)
    assert (await ring.queue.stats.read()).ready == 1


async def test_a_fan_out_that_broke_half_way_is_finished_although_its_key_is_being_deleted(
    ring: KeyRing,
) -> None:
    runs = runs_of(ring)
    await ring.registry.put(ADA, fresh())
    for time_ms in (FIRST_MS, SECOND_MS):
        with one_partition_away(), pytest.raises(QueueUnavailable):
            await runs.carry_out(HOURLY, time_ms)
    half = (await ring.queue.conserved()).counter("accepted") // 2
    await ring.registry.delete(ADA, when_unused=True)
    for _ in range(2):
        await runs.carry_out(HOURLY, FIRST_MS)
    assert (await ring.queue.conserved()).counter("accepted") == len(INBOXES) + half
    with pytest.raises(InvalidKey, match="is registered"):
        await runs.carry_out(HOURLY, SECOND_MS + 1000)
    canceller = Canceller(ring.queue.link, ring.queue.keys, ring.queue.settings)
    for time_ms in (FIRST_MS, SECOND_MS):
        await canceller.cancel_activity(f"https://me.example/{HOURLY.run_id(time_ms)}")
    assert await ring.keeper.end_deletions() == 1
    with pytest.raises(InvalidKey, match="is registered"):
        await runs.carry_out(HOURLY, SECOND_MS)
    assert (await ring.queue.conserved()).counter("accepted") == len(INBOXES) + half
