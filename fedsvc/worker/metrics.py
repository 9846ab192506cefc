"""What a worker process tells Prometheus. Labels are of bounded number: never hosts, never ids."""

from __future__ import annotations

from prometheus_client import Counter, Histogram

from fedsvc.domain.activity_types import type_code
from fedsvc.domain.delivery import Delivery
from fedsvc.worker.settlements import Tried

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_LONG_SECONDS = (0.01, 0.05, 0.1, 0.5, 1, 5, 30, 60, 300, 900, 3600, 14_400, 86_400)

ATTEMPTS = Counter(
    "fedsvc_attempts", "Attempts to deliver, by type of activity and reason.", ("type", "reason")
)
ATTEMPT_SECONDS = Histogram(
    "fedsvc_attempt_seconds", "Time that an attempt took, in seconds.", buckets=_SECONDS
)
DELIVERIES = Counter(
    "fedsvc_deliveries", "Deliveries that ended, by final state and type of activity.", ("state", "type")
)
DELIVERED_SECONDS = Histogram(
    "fedsvc_enqueue_to_delivered_seconds",
    "Time from acceptance to delivery, in seconds.",
    buckets=_LONG_SECONDS,
)


def _label(activity_type: str) -> str:
    return activity_type if type_code(activity_type) else "other"


class Metrics:
    def tried(self, activity_type: str, tried: Tried) -> None:
        ATTEMPTS.labels(_label(activity_type), tried.verdict.reason.name.lower()).inc()
        ATTEMPT_SECONDS.observe(tried.latency_ms / 1000)

    def finished(self, delivery: Delivery, took_ms: int) -> None:
        """`took_ms`: milliseconds since its acceptance."""
        DELIVERIES.labels(delivery.state.name.lower(), _label(delivery.activity_type)).inc()
        if delivery.state.name == "DELIVERED":
            DELIVERED_SECONDS.observe(max(0, took_ms) / 1000)
