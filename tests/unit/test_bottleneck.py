"""Which figures make what the bottleneck, one by one and together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fedsvc.domain.delivery import Priority
from fedsvc.queue.bottleneck import ARCHIVE_BACKLOG, ARCHIVE_MS, READY_MS, Bottleneck, bottleneck
from fedsvc.queue.stats import PriorityStats, QueueStats
from fedsvc.v1 import operations_service_pb2 as operations

IDLE = QueueStats(
    now_ms=0, partitions=16, counters={}, priorities={p: PriorityStats(0, 0, 0) for p in Priority}, retry=0,
    scheduled=0, parked=0, open_circuits=0, parked_behind_circuits=0, due=0, next_due_ms=None, dead_letters=0,
    consumers=2, rates=(), archive_backlog=0, archive_lag_ms=0, origins={},
)  # fmt: skip


def figures(*, ready: int = 0, in_flight: int = 0, waits_ms: int = 0, **others: Any) -> QueueStats:
    bulk = {Priority.BULK: PriorityStats(ready, in_flight, waits_ms)}
    return replace(IDLE, priorities={**IDLE.priorities, **bulk}, **others)


@pytest.mark.parametrize(
    ("stats", "expected"),
    [
        (figures(), Bottleneck.NONE),
        (figures(consumers=0), Bottleneck.NONE),
        # workers
        (figures(ready=1, consumers=0), Bottleneck.WORKERS),
        (figures(in_flight=1, consumers=0), Bottleneck.WORKERS),
        (figures(retry=5, due=1, consumers=0), Bottleneck.WORKERS),
        (figures(retry=5, consumers=0), Bottleneck.NONE),
        (figures(ready=100_000, waits_ms=READY_MS), Bottleneck.NONE),
        (figures(ready=1, waits_ms=READY_MS + 1), Bottleneck.WORKERS),
        # the archive
        (figures(archive_backlog=ARCHIVE_BACKLOG), Bottleneck.NONE),
        (figures(archive_backlog=ARCHIVE_BACKLOG + 1), Bottleneck.ARCHIVE),
        (figures(archive_backlog=1, archive_lag_ms=ARCHIVE_MS), Bottleneck.NONE),
        (figures(archive_backlog=1, archive_lag_ms=ARCHIVE_MS + 1), Bottleneck.ARCHIVE),
        (figures(archive_backlog=0, archive_lag_ms=ARCHIVE_MS + 1), Bottleneck.NONE),
        # hosts
        (figures(parked=1), Bottleneck.HOST_LIMITS),
        (figures(parked=1, parked_behind_circuits=1, open_circuits=1), Bottleneck.CIRCUITS),
        (figures(parked=10, parked_behind_circuits=5), Bottleneck.CIRCUITS),
        (figures(parked=10, parked_behind_circuits=4), Bottleneck.HOST_LIMITS),
        (figures(parked=10, parked_behind_circuits=10, ready=10), Bottleneck.NONE),
        (figures(parked=10, parked_behind_circuits=10, ready=5, in_flight=4), Bottleneck.CIRCUITS),
        (figures(parked=10, retry=10), Bottleneck.NONE),
        (figures(parked=10, scheduled=1000), Bottleneck.HOST_LIMITS),
        # together: what keeps all from going goes before what keeps some
        (figures(parked=10, ready=1, consumers=0), Bottleneck.WORKERS),
        (figures(parked=10, ready=1, waits_ms=READY_MS + 1), Bottleneck.WORKERS),
        (figures(parked=10, archive_backlog=ARCHIVE_BACKLOG + 1), Bottleneck.ARCHIVE),
        (figures(ready=1, consumers=0, archive_backlog=ARCHIVE_BACKLOG + 1), Bottleneck.WORKERS),
    ],
)
def test_the_bottleneck_follows_from_the_figures(stats: QueueStats, expected: Bottleneck) -> None:
    assert bottleneck(stats, memory_critical=False) is expected
    assert bottleneck(stats, memory_critical=True) is Bottleneck.MEMORY


def test_numbers_are_those_of_the_contract() -> None:
    names = {f"BOTTLENECK_{b.name}": int(b) for b in Bottleneck}
    assert names == {name: n for name, n in operations.Bottleneck.items() if n}
