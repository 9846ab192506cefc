"""What holds deliveries up now, by the figures of the whole queue. Needs no I/O."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from fedsvc.queue.stats import QueueStats


class Bottleneck(IntEnum):
    """Numbers are those of the contract."""

    NONE = 1
    WORKERS = 2
    HOST_LIMITS = 3
    CIRCUITS = 4
    ARCHIVE = 5
    MEMORY = 6


#: milliseconds that a delivery may wait for a worker
READY_MS: Final = 5_000
#: outcomes that may wait for the archive; and for how many milliseconds they may
ARCHIVE_BACKLOG: Final = 10_000
ARCHIVE_MS: Final = 60_000


def bottleneck(stats: QueueStats, *, memory_critical: bool) -> Bottleneck:
    """The first of these that is true.

    MEMORY: Redis is so full that new work is refused. WORKERS: something waits for a worker, and there is
    none, or it has waited for long. ARCHIVE: outcomes fill Redis, as SQL does not take them. CIRCUITS,
    HOST_LIMITS: most of what is pending now (and not scheduled for later) is parked; most of that for hosts
    that are down, or for others.
    """
    if memory_critical:
        return Bottleneck.MEMORY
    waits_ms = max((p.oldest_age_ms for p in stats.priorities.values()), default=0)
    if waits_ms > READY_MS or (not stats.consumers and stats.ready + stats.in_flight + stats.due):
        return Bottleneck.WORKERS
    if stats.archive_backlog > ARCHIVE_BACKLOG or (
        stats.archive_backlog and stats.archive_lag_ms > ARCHIVE_MS
    ):
        return Bottleneck.ARCHIVE
    if 2 * stats.parked > stats.pending - stats.scheduled:
        down = 2 * stats.parked_behind_circuits >= stats.parked
        return Bottleneck.CIRCUITS if down else Bottleneck.HOST_LIMITS
    return Bottleneck.NONE
