"""What the queue holds, for Prometheus: read now and then, and told from memory whenever somebody scrapes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fedsvc.config import Settings
from fedsvc.errors import FedsvcError
from fedsvc.queue.host_list import HostList
from fedsvc.queue.hosts import Circuit
from fedsvc.queue.link import Link
from fedsvc.queue.server_info import ServerInfo, server_info
from fedsvc.queue.stats import TERMINAL, QueueStats, StatsReader

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Seen:
    stats: QueueStats
    info: ServerInfo
    #: hosts by state of their circuit, and those with a lane in which something waits
    circuits: Mapping[Circuit, int]
    lanes: int
    #: shares of Redis's memory
    warning: float
    critical: float


class QueueMetrics(Collector):
    """Every server tells the same figures: in queries, take `max` over servers."""

    #: seconds between two looks at the queue, and at its hosts
    EVERY: Final = 5.0
    HOSTS_EVERY: Final = 60.0
    #: seconds after which figures are too old to be told
    OLD: Final = 30.0

    def __init__(
        self,
        link: Link,
        stats: StatsReader,
        hosts: HostList,
        settings: Settings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._link = link
        self._stats = stats
        self._hosts = hosts
        self._thresholds = settings.memory_warning, settings.memory_critical
        self._clock = clock
        self._at = self._hosts_at = float("-inf")
        self._circuits: Mapping[Circuit, int] = {}
        self._lanes = 0
        self._seen: Seen | None = None

    async def run(self, registry: CollectorRegistry) -> None:
        """Tell a registry until cancelled. While Redis is away the last figures are told for a while."""
        registry.register(self)
        try:
            while True:
                try:
                    await self.look()
                except FedsvcError:
                    log.debug("no_figures", exc_info=True)
                await asyncio.sleep(self.EVERY)
        finally:
            registry.unregister(self)

    async def look(self) -> None:
        """Raises QueueUnavailable."""
        stats, info = await asyncio.gather(self._stats.read(), server_info(self._link))
        if self._clock() - self._hosts_at >= self.HOSTS_EVERY:
            snapshot = await self._hosts.snapshot()
            self._circuits, self._lanes = snapshot.circuits(), snapshot.lanes()
            self._hosts_at = self._clock()
        self._seen = Seen(stats, info, self._circuits, self._lanes, *self._thresholds)
        self._at = self._clock()

    def describe(self) -> Iterator[Metric]:
        """Their names, without values."""
        return iter(_families(None))

    def collect(self) -> Iterator[Metric]:
        return iter(_families(self._fresh()))

    def depth(self) -> dict[str, int] | None:
        """Deliveries that wait for a worker, that are with one, and both; None if that is not known."""
        seen = self._fresh()
        if seen is None:
            return None
        figures = seen.stats.priorities.values()
        ready, in_flight = sum(f.ready for f in figures), sum(f.in_flight for f in figures)
        return {"ready": ready, "in_flight": in_flight, "depth": ready + in_flight}

    def _fresh(self) -> Seen | None:
        return self._seen if self._clock() - self._at < self.OLD else None


def _families(seen: Seen | None) -> list[Metric]:
    def gauge(name: str, what: str, values: Callable[[Seen], Any], *labels: str) -> GaugeMetricFamily:
        """`values`: a number, or pairs of label values and a number."""
        family = GaugeMetricFamily(f"fedsvc_{name}", what, labels=labels)
        if seen is not None:
            found = values(seen)
            for key, value in found if labels else [((), found)]:
                family.add_metric([str(part).lower() for part in key], value)
        return family

    up = GaugeMetricFamily("fedsvc_queue_up", "1 if this server has read the queue's figures lately.")
    up.add_metric([], 0 if seen is None else 1)
    moved = CounterMetricFamily(
        "fedsvc_queue_deliveries",
        "Deliveries ever accepted, and ended by state, as Redis counts them. Dead letters are a gauge.",
        labels=("state",),
    )
    if seen is not None:
        for name in ("accepted", *(name for name in TERMINAL if name != "dead")):
            moved.add_metric([name], seen.stats.counter(name))
    return [
        up,
        moved,
        gauge(
            "queue_depth",
            "Deliveries that wait for a worker (ready) or are with one (in_flight), by priority.",
            lambda s: [
                pair
                for priority, figures in s.stats.priorities.items()
                for pair in (
                    ((priority.name, "ready"), figures.ready),
                    ((priority.name, "in_flight"), figures.in_flight),
                )
            ],
            "priority",
            "state",
        ),
        gauge(
            "queue_oldest_seconds",
            "How long the oldest delivery that no worker has is waiting, by priority.",
            lambda s: [((p.name,), f.oldest_age_ms / 1000) for p, f in s.stats.priorities.items()],
            "priority",
        ),
        gauge(
            "queue_waiting",
            "Deliveries that wait for their host or order (parked), their next attempt (retry) or time "
            "(scheduled).",
            lambda s: [((name,), getattr(s.stats, name)) for name in ("parked", "retry", "scheduled")],
            "why",
        ),
        gauge(
            "queue_retries_due",
            "Retries and scheduled deliveries whose time has come.",
            lambda s: s.stats.due,
        ),
        gauge("queue_dead_letters", "Dead letters now.", lambda s: s.stats.dead_letters),
        gauge(
            "queue_conserved",
            "1 if accepted = delivered + dead + purged + cancelled + superseded + expired + pending.",
            lambda s: int(s.stats.conserved),
        ),
        gauge("queue_workers", "Worker processes that are alive.", lambda s: s.stats.consumers),
        gauge(
            "queue_circuits_open",
            "Hosts that are down or being tried again.",
            lambda s: s.stats.open_circuits,
        ),
        gauge(
            "queue_hosts",
            "Hosts that are known, by state; looked at once a minute.",
            lambda s: [((circuit.name,), s.circuits.get(circuit, 0)) for circuit in Circuit],
            "state",
        ),
        gauge(
            "queue_lanes",
            "Hosts for which deliveries wait in a lane; looked at once a minute.",
            lambda s: s.lanes,
        ),
        gauge(
            "archive_backlog",
            "Outcomes that SQL has not committed.",
            lambda s: s.stats.archive_backlog,
        ),
        gauge(
            "archive_lag_seconds",
            "How long the oldest outcome that SQL has not committed has waited; 0 if there is none.",
            lambda s: s.stats.archive_lag_ms / 1000,
        ),
        gauge("redis_used_bytes", "Memory that Redis uses.", lambda s: s.info.used_memory),
        gauge("redis_max_bytes", "Memory that Redis may use; 0 for no limit.", lambda s: s.info.max_memory),
        gauge(
            "redis_warning_bytes",
            "Memory from which on backlogs go to SQL, by FEDSVC_MEMORY_WARNING; 0 for no limit.",
            lambda s: int(s.info.max_memory * s.warning),
        ),
        gauge(
            "redis_critical_bytes",
            "Memory from which on new work is refused, by FEDSVC_MEMORY_CRITICAL; 0 for no limit.",
            lambda s: int(s.info.max_memory * s.critical),
        ),
    ]
