"""The last minutes of the queue's figures, as the overview draws them: sampled by each server, in its
memory."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import structlog

from fedsvc.domain.delivery import Delivery, Priority
from fedsvc.errors import FedsvcError
from fedsvc.queue.link import Link
from fedsvc.queue.outcomes import OutcomeLog
from fedsvc.queue.server_info import server_info
from fedsvc.queue.stats import StatsReader

log = structlog.get_logger(__name__)

#: seconds over which latencies are told
_RECENT_S: Final = 60
#: outcomes of each partition that are looked at, at most
_OUTCOMES: Final = 16


class Latency(NamedTuple):
    """Of attempts that ended within the last minute: milliseconds; None if there was none."""

    median: float | None
    slow: float | None


@dataclass(frozen=True, slots=True)
class Sample:
    #: by Redis's clock
    time_ms: int
    #: ever
    accepted: int
    delivered: int
    dead: int
    #: wait for a worker or are with one
    depth: dict[Priority, int]
    parked: int
    retry: int
    open_circuits: int
    #: milliseconds
    oldest_ms: int
    latency: Latency
    used_memory: int
    max_memory: int


class History:
    #: seconds between two samples
    EVERY: Final = 2.0
    #: samples that are kept: a quarter of an hour
    KEPT: Final = 450

    def __init__(self, link: Link, stats: StatsReader, outcomes: OutcomeLog, partitions: int) -> None:
        self._link = link
        self._stats = stats
        self._outcomes = outcomes
        self._partitions = partitions
        self._samples: deque[Sample] = deque(maxlen=self.KEPT)

    @property
    def samples(self) -> Sequence[Sample]:
        """Oldest first."""
        return self._samples

    async def run(self) -> None:
        """For ever. While Redis is away there are no samples."""
        while True:
            try:
                await self.take()
            except FedsvcError:
                log.debug("no_sample", exc_info=True)
            await asyncio.sleep(self.EVERY)

    async def take(self) -> None:
        """One sample. Raises QueueUnavailable."""
        newest = asyncio.gather(*(self._outcomes.newest(p, _OUTCOMES) for p in range(self._partitions)))
        stats, info, outcomes = await asyncio.gather(self._stats.read(), server_info(self._link), newest)
        ended = [delivery for some in outcomes for delivery in some]
        self._samples.append(
            Sample(
                time_ms=stats.now_ms,
                accepted=stats.counter("accepted"),
                delivered=stats.counter("delivered"),
                dead=stats.counter("dead") + stats.counter("purged"),
                depth={p: s.ready + s.in_flight for p, s in stats.priorities.items()},
                parked=stats.parked,
                retry=stats.retry,
                open_circuits=stats.open_circuits,
                oldest_ms=max((s.oldest_age_ms for s in stats.priorities.values()), default=0),
                latency=latency(ended, stats.now_ms),
                used_memory=info.used_memory,
                max_memory=info.max_memory,
            )
        )


def latency(ended: Sequence[Delivery], now_ms: int) -> Latency:
    """Of the last attempt of each of these."""
    recent = sorted(
        delivery.history[-1].latency_ms
        for delivery in ended
        if delivery.history and now_ms - delivery.completed_ms < _RECENT_S * 1000
    )
    if not recent:
        return Latency(None, None)
    return Latency(recent[len(recent) // 2], recent[min(len(recent) - 1, len(recent) * 95 // 100)])
