"""What the client returns. Times are aware datetimes in UTC, durations timedeltas; None is "none"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from fedsvc_client._str_enum import StrEnum


class DeliveryState(StrEnum):
    UNSPECIFIED = "UNSPECIFIED"
    READY = "READY"
    IN_FLIGHT = "IN_FLIGHT"
    PARKED = "PARKED"
    RETRY = "RETRY"
    SCHEDULED = "SCHEDULED"
    DELIVERED = "DELIVERED"
    DEAD = "DEAD"
    CANCELLED = "CANCELLED"
    SUPERSEDED = "SUPERSEDED"
    EXPIRED = "EXPIRED"
    PURGED = "PURGED"

    @property
    def is_final(self) -> bool:
        """Whether nothing more happens by itself."""
        return self in _FINAL


_FINAL = frozenset(
    {
        DeliveryState.DELIVERED,
        DeliveryState.DEAD,
        DeliveryState.CANCELLED,
        DeliveryState.SUPERSEDED,
        DeliveryState.EXPIRED,
        DeliveryState.PURGED,
    }
)


class Priority(StrEnum):
    UNSPECIFIED = "UNSPECIFIED"
    URGENT = "URGENT"
    NORMAL = "NORMAL"
    BULK = "BULK"


@dataclass(frozen=True)
class Attempt:
    time: datetime | None
    latency: timedelta
    #: HTTP status, 0 when there was no answer
    http_status: int
    reason: str


@dataclass(frozen=True)
class Delivery:
    """One activity to one inbox, as it is now."""

    delivery_id: str
    state: DeliveryState
    activity_id: str
    activity_type: str
    actor: str
    inbox: str
    host: str
    origin: str
    key_id: str
    priority: Priority
    attempts: int
    #: why the last attempt, or the delivery, ended as it did; empty if there was none
    reason: str
    http_status: int
    #: what the last answer's body began with, and behind it in parentheses what is to be said beside, as
    #: where a redirect leads; or what went wrong. At most 1 KiB
    response_snippet: str
    accept_time: datetime | None
    not_before: datetime | None
    next_attempt_time: datetime | None
    expire_time: datetime | None
    complete_time: datetime | None
    attempt_history: tuple[Attempt, ...]
    ordering_key: str
    request_id: str


@dataclass(frozen=True)
class QueuedActivity:
    """The answer to `queue_activity`."""

    delivery_id: str
    #: it was accepted before: `delivery_id` is that delivery
    duplicate: bool
    delivery: Delivery


@dataclass(frozen=True)
class ItemError:
    """What is wrong with one item of a batch or fan-out."""

    reason: str
    message: str
    field: str


@dataclass(frozen=True)
class BatchItem:
    """The answer for one activity of `queue_activities`: either `queued` or `error` is set."""

    index: int
    queued: QueuedActivity | None
    error: ItemError | None


@dataclass(frozen=True)
class RejectedInbox:
    index: int
    inbox: str
    error: ItemError


@dataclass(frozen=True)
class FanOut:
    """The answer to `fan_out`."""

    activity_id: str
    accepted: int
    duplicates: int
    rejected: list[RejectedInbox]


@dataclass(frozen=True)
class Cancelled:
    """What became of deliveries that were to be cancelled."""

    #: will not be sent
    cancelled: int
    #: are on their way; not tried again if this attempt fails
    in_flight: int
    #: had ended already
    ended: int


@dataclass(frozen=True)
class DeliveryPage:
    """Some deliveries of an activity, and how many there are in each state in all."""

    deliveries: tuple[Delivery, ...]
    #: for the next page; empty on the last
    next_page_token: str
    summary: Mapping[DeliveryState, int]


class EventType(StrEnum):
    OUTCOME = "OUTCOME"
    INBOX_GONE = "INBOX_GONE"
    HOST_DOWN = "HOST_DOWN"
    HOST_UP = "HOST_UP"
    KEY_REJECTED = "KEY_REJECTED"
    #: nothing happened; only the cursor counts
    HEARTBEAT = "HEARTBEAT"
    #: of a newer server
    UNSPECIFIED = "UNSPECIFIED"


@dataclass(frozen=True)
class OutcomeEvent:
    """Something that `watch_outcomes` tells of."""

    #: keep it once the event was handled: watching goes on from here
    cursor: str
    type: EventType
    time: datetime | None = None
    #: of an OUTCOME
    delivery: Delivery | None = None
    host: str = ""
    #: of INBOX_GONE
    inbox: str = ""
    #: of KEY_REJECTED
    key_id: str = ""


@dataclass(frozen=True)
class PriorityStats:
    ready: int
    in_flight: int
    #: how long the oldest delivery waits that no worker has
    oldest_age: timedelta


@dataclass(frozen=True)
class RegisteredKey:
    """A signing key that the server keeps, without what is secret."""

    key_id: str
    #: host of its id: the instance that it signs for
    origin: str
    #: RSA or ED25519
    algorithm: str
    bits: int
    fingerprint: str
    public_key_pem: str
    create_time: datetime | None
    #: it is deleted once nothing needs it any more
    deletion_pending: bool


@dataclass(frozen=True)
class KeyPage:
    keys: tuple[RegisteredKey, ...]
    next_page_token: str


@dataclass(frozen=True)
class Rates:
    """Per second, over `window`."""

    window: timedelta
    accepted: float
    attempted: float
    delivered: float
    failed: float


@dataclass(frozen=True)
class QueueStats:
    accepted: int
    delivered: int
    dead: int
    purged: int
    cancelled: int
    superseded: int
    expired: int
    pending: int
    ready: int
    in_flight: int
    retry: int
    scheduled: int
    parked: int
    priorities: Mapping[Priority, PriorityStats]
    rates: tuple[Rates, ...]
    consumers: int
    partitions: int
    #: whether accepted = delivered + dead + purged + cancelled + superseded + expired + pending
    conserved: bool
    redis_server: str
    redis_version: str
    #: bytes
    redis_used_memory: int
    #: bytes, 0 for no limit
    redis_max_memory: int
    archive_backlog: int
    archive_lag: timedelta
    read_time: datetime | None
    #: pending deliveries of those origins that have most, most first; 100 at most
    origins: Mapping[str, int]
    #: what holds deliveries up: NONE, WORKERS, HOST_LIMITS, CIRCUITS, ARCHIVE or MEMORY
    bottleneck: str
    #: hosts that are down or being tried again
    open_circuits: int
    #: of `parked`, those whose host is such a one
    parked_behind_circuits: int
