"""What the client returns to operators. Times are aware datetimes in UTC, durations timedeltas."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from fedsvc_client._str_enum import StrEnum
from fedsvc_client._types import Attempt, Delivery, Priority


@dataclass(frozen=True)
class DeadLetterPage:
    """It may hold fewer than asked for, or none, and not be the last."""

    dead_letters: tuple[Delivery, ...]
    #: for the next page; empty on the last
    next_page_token: str


@dataclass(frozen=True)
class DeadLetterFilter:
    """Those that fit all that is given."""

    host: str = ""
    activity_type: str = ""
    actor: str = ""
    #: such as GONE
    reason: str = ""
    http_status: int = 0
    #: given up at or after, and before
    start_time: datetime | None = None
    end_time: datetime | None = None


@dataclass(frozen=True)
class Operation:
    """Something that takes a while."""

    operation_id: str
    #: `replay` or `purge`
    kind: str
    principal: str
    create_time: datetime | None
    #: None while it goes on
    complete_time: datetime | None
    #: how many it is about, as far as known
    total: int
    completed: int
    #: asked for by id, and no dead letters
    failed: int
    #: it stopped at its limit, and there are more
    limit_reached: bool
    dry_run: bool
    done: bool
    #: what went wrong, if it ended badly
    error: str
    #: what was asked for; None if ids were
    filter: DeadLetterFilter | None
    #: 0 for none
    limit: int


@dataclass(frozen=True)
class OperationPage:
    operations: tuple[Operation, ...]
    next_page_token: str


class HostState(StrEnum):
    UNSPECIFIED = "UNSPECIFIED"
    CLOSED = "CLOSED"
    OPEN = "OPEN"
    HALF_OPEN = "HALF_OPEN"
    PAUSED = "PAUSED"
    GONE = "GONE"


class HostOrder(StrEnum):
    NAME = "NAME"
    BACKLOG = "BACKLOG"
    FAILURES = "FAILURES"
    LATENCY = "LATENCY"


@dataclass(frozen=True)
class HostPolicy:
    """A host's limits; 0 stands for the default."""

    max_in_flight: int
    rate_per_second: float
    burst: int


@dataclass(frozen=True)
class Host:
    host: str
    state: HostState
    #: deliveries that wait for it
    backlog: int
    in_flight: int
    #: in a row
    failures: int
    next_probe_time: datetime | None
    last_success_time: datetime | None
    last_failure_time: datetime | None
    latency: timedelta
    policy: HostPolicy
    pause_reason: str
    #: None for ever
    pause_end_time: datetime | None


@dataclass(frozen=True)
class HostAttempt:
    delivery_id: str
    attempt: Attempt


@dataclass(frozen=True)
class HostPage:
    hosts: tuple[Host, ...]
    next_page_token: str


@dataclass(frozen=True)
class RetryStats:
    retry: int
    scheduled: int
    #: of both, those whose time has come
    due: int
    next_due_time: datetime | None
    #: by type of activity; "" for those without a policy of their own
    by_type: Mapping[str, int]
    by_attempt: Mapping[int, int]
    by_reason: Mapping[str, int]
    #: how many are due within a time and not within the one before; None: beyond
    histogram: tuple[tuple[timedelta | None, int], ...]


@dataclass(frozen=True)
class MemoryCategory:
    name: str
    entries: int
    #: about
    bytes: int


@dataclass(frozen=True)
class Cleanup:
    """What `force_cleanup` has forgotten."""

    #: of how many entries of each kind; what the bytes of a kind were is not told
    freed: tuple[MemoryCategory, ...]
    #: in all, as Redis's memory shrank meanwhile
    freed_bytes: int


@dataclass(frozen=True)
class MemoryStatus:
    """Of Redis, in bytes; 0 stands for "no limit"."""

    used_bytes: int
    peak_bytes: int
    rss_bytes: int
    fragmentation_ratio: float
    max_bytes: int
    warning_threshold_bytes: int
    critical_threshold_bytes: int
    #: OK, WARNING or CRITICAL
    state: str
    eviction_policy: str
    categories: tuple[MemoryCategory, ...]


@dataclass(frozen=True)
class ScheduledFanOut:
    """An activity that a schedule fans out. `{run_id}` and `{time}` in it are replaced."""

    activity: bytes
    inboxes: tuple[str, ...]
    #: of a registered key
    key_id: str
    #: UNSPECIFIED: as the activity's type has it
    priority: Priority = Priority.UNSPECIFIED


@dataclass(frozen=True)
class Schedule:
    """Something done again and again: `cron` or `interval`, `fan_out` or `task`."""

    schedule_id: str = ""
    #: five fields
    cron: str = ""
    interval: timedelta | None = None
    #: IANA's name
    time_zone: str = "UTC"
    fan_out: ScheduledFanOut | None = None
    #: ARCHIVE_PURGE, HOST_PROBE, DEAD_LETTER_REPLAY or CLEANUP
    task: str = ""
    task_arguments: Mapping[str, Any] = field(default_factory=dict)
    description: str = ""
    #: what happens to runs that were missed: ONCE or SKIP
    missed_runs: str = "ONCE"
    paused: bool = False
    last_run_time: datetime | None = None
    next_run_time: datetime | None = None
    #: of the last run; empty if all went well
    last_error: str = ""


@dataclass(frozen=True)
class SchedulePage:
    schedules: tuple[Schedule, ...]
    next_page_token: str


@dataclass(frozen=True)
class AuditEvent:
    audit_event_id: str
    time: datetime | None
    principal: str
    #: such as `host.pause`
    action: str
    subject: str
    details: Mapping[str, Any]


@dataclass(frozen=True)
class AuditPage:
    audit_events: tuple[AuditEvent, ...]
    next_page_token: str
