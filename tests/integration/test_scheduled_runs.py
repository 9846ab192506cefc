"""What runs of schedules do to the queue, on a real server."""

from __future__ import annotations

from typing import Any, cast

import pytest
from servers.key_ring import ADA, KeyRing, fresh
from servers.queue import Queue

from fedsvc.domain.schedule import FanOutTemplate, Recurrence, Schedule, Task
from fedsvc.handlers.registry import Registry
from fedsvc.queue.hosts import Circuit
from fedsvc.worker.archive_purger import ArchivePurger
from fedsvc.worker.scheduled_runs import ScheduledRuns


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
