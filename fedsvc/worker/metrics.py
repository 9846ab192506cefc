"""What a worker process tells Prometheus. Labels are of bounded number: never hosts, never ids."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

from fedsvc.domain.activity_types import type_code
from fedsvc.domain.delivery import Delivery, DeliveryState, Reason
from fedsvc.worker.settlements import Tried
from fedsvc.worker.tally import Count, Counts, Times

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SHORT_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5)
_LONG_SECONDS = (0.01, 0.05, 0.1, 0.5, 1, 5, 30, 60, 300, 900, 3600, 14_400, 86_400)

ATTEMPTS = Counter(
    "fedsvc_attempts", "Attempts to deliver, by type of activity and reason.", ("type", "reason")
)
ANSWERS = Counter(
    "fedsvc_answers", "Attempts to deliver, by class of the HTTP status: 2xx to 5xx, or none.", ("status",)
)
ATTEMPT_SECONDS = Histogram(
    "fedsvc_attempt_seconds", "Time that a POST took, knocks included, in seconds.", buckets=_SECONDS
)
DELIVERIES = Counter(
    "fedsvc_deliveries", "Deliveries that ended, by final state and type of activity.", ("state", "type")
)
DELIVERY_ATTEMPTS = Histogram(
    "fedsvc_delivery_attempts",
    "Attempts that a delivery took until it was delivered or given up.",
    buckets=(0, 1, 2, 3, 5, 8, 12, 20),
)
FIRST_ATTEMPT_SECONDS = Histogram(
    "fedsvc_enqueue_to_first_attempt_seconds",
    "Time from acceptance to the first attempt, in seconds; waiting for a `not_before` counts.",
    buckets=_LONG_SECONDS,
)
DELIVERED_SECONDS = Histogram(
    "fedsvc_enqueue_to_delivered_seconds",
    "Time from acceptance to delivery, in seconds.",
    buckets=_LONG_SECONDS,
)
SIGN_SECONDS = Histogram(
    "fedsvc_sign_seconds",
    "Time for a signature, the way to the signing process included, in seconds.",
    buckets=_SHORT_SECONDS,
)
SETTLE_SECONDS = Histogram(
    "fedsvc_settle_seconds", "Time of a script that settles a batch, in seconds.", buckets=_SECONDS
)
SETTLE_BATCH = Histogram(
    "fedsvc_settle_batch", "Deliveries in a batch that was settled.", buckets=(1, 2, 5, 10, 25, 50, 100, 128)
)
KEY_LOOKUPS = Counter("fedsvc_key_lookups", "Signing keys asked for.")
KEY_FETCHES = Counter(
    "fedsvc_key_fetches", "Signing keys that had to be fetched from Redis and decrypted: not in the cache."
)
PARTITIONS = Gauge(
    "fedsvc_worker_partitions",
    "Partitions that this worker process serves before others.",
    multiprocess_mode="liveall",
)
WORKERS = Gauge(
    "fedsvc_workers_seen",
    "Worker processes that share the partitions, as this one sees it.",
    multiprocess_mode="liveall",
)
HELPED = Counter(
    "fedsvc_helped_deliveries",
    "Deliveries taken from partitions of other worker processes that were behind or gone.",
)
#: why deliveries end without a worker that would tell of it
BY_ITSELF: Final = frozenset({Reason.MAX_AGE, Reason.EXPIRED, Reason.CANCELLED, Reason.SUPERSEDED})
_CLASSES: Final = {1: "1xx", 2: "2xx", 3: "3xx", 4: "4xx", 5: "5xx"}


def _label(activity_type: str) -> str:
    return activity_type if type_code(activity_type) else "other"


def _by_reason(what: tuple[str, Reason]) -> tuple[str, ...]:
    return _label(what[0]), what[1].name.lower()


def _by_class(status_class: int) -> tuple[str, ...]:
    return (_CLASSES.get(status_class, "none"),)


def _by_state(what: tuple[DeliveryState, str]) -> tuple[str, ...]:
    return what[0].name.lower(), _label(what[1])


SIGNATURES: Final = Times(SIGN_SECONDS)
LOOKUPS: Final = Count(KEY_LOOKUPS)
_ATTEMPTS: Final = Counts(ATTEMPTS, _by_reason)
_ANSWERS: Final = Counts(ANSWERS, _by_class)
_DELIVERIES: Final = Counts(DELIVERIES, _by_state)
_ATTEMPT_TIMES: Final = Times(ATTEMPT_SECONDS)
_DELIVERY_ATTEMPTS: Final = Times(DELIVERY_ATTEMPTS)
_FIRST_ATTEMPTS: Final = Times(FIRST_ATTEMPT_SECONDS)
_DELIVERED: Final = Times(DELIVERED_SECONDS)


class Metrics:
    """Of deliveries; Prometheus knows of them after `tally.tell`."""

    def helped(self, deliveries: int) -> None:
        """So many were taken for another worker."""
        HELPED.inc(deliveries)

    def first(self, waited_ms: int) -> None:
        """The first attempt begins, so long after acceptance."""
        _FIRST_ATTEMPTS.observe(max(0, waited_ms) / 1000)

    def tried(self, activity_type: str, tried: Tried) -> None:
        verdict = tried.verdict
        _ATTEMPTS.inc((activity_type, verdict.reason))
        _ANSWERS.inc(verdict.status // 100)
        _ATTEMPT_TIMES.observe(tried.latency_ms / 1000)

    def finished(self, delivery: Delivery, took_ms: int) -> None:
        """By this worker. `took_ms`: milliseconds since its acceptance."""
        if delivery.reason in BY_ITSELF:
            return  # as most of these that no worker sees, it counts once it is archived
        self.ended(delivery)
        if delivery.state is DeliveryState.DELIVERED:
            _DELIVERED.observe(max(0, took_ms) / 1000)

    def ended(self, delivery: Delivery) -> None:
        """Whoever ended it."""
        state = delivery.state
        _DELIVERIES.inc((state, delivery.activity_type))
        if state is DeliveryState.DELIVERED or state is DeliveryState.DEAD:
            _DELIVERY_ATTEMPTS.observe(delivery.attempts)
