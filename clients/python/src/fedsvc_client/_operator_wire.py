"""Between what operators see and what travels. No I/O."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict

from fedsvc_client._arguments import build, choices, named, of_kind, optional_text, several, whole_text
from fedsvc_client._exceptions import InvalidRequest
from fedsvc_client._operator_types import (
    AuditEvent,
    AuditPage,
    Cleanup,
    DeadLetterFilter,
    DeadLetterPage,
    Host,
    HostAttempt,
    HostOrder,
    HostPage,
    HostPolicy,
    HostState,
    MemoryCategory,
    MemoryStatus,
    Operation,
    OperationPage,
    RetryStats,
)
from fedsvc_client._proto import operations_service_pb2 as pb
from fedsvc_client._proto import types_pb2
from fedsvc_client._types import Attempt, PriorityStats, QueueStats, Rates
from fedsvc_client._wire import (
    When,
    delivery,
    duration_of,
    name_of,
    priority_of,
    reason_of,
    time_of,
    timestamp_of,
)


def duration(name: str, span: timedelta | float | None) -> Duration | None:
    """Seconds, or a timedelta."""
    if span is None:
        return None
    found = Duration()
    try:
        found.FromTimedelta(span if isinstance(span, timedelta) else timedelta(seconds=span))
    except (OverflowError, ValueError, TypeError):
        raise InvalidRequest(f"{name} is not a duration") from None
    return found


def dead_letter_filter(chosen: DeadLetterFilter) -> pb.DeadLetterFilter:
    of_kind("filter", chosen, DeadLetterFilter)
    name = whole_text("reason", chosen.reason).upper() or "UNSPECIFIED"
    try:
        reason = types_pb2.Reason.Value(f"REASON_{name}")
    except ValueError:
        raise InvalidRequest(f"{chosen.reason!r} is not a reason") from None
    return build(
        pb.DeadLetterFilter,
        host=optional_text("host", chosen.host),
        activity_type=chosen.activity_type,
        actor=chosen.actor,
        reason=reason,
        http_status=chosen.http_status,
        start_time=timestamp_of("start_time", chosen.start_time),
        end_time=timestamp_of("end_time", chosen.end_time),
    )


def dead_letter_page(m: pb.ListDeadLettersResponse) -> DeadLetterPage:
    return DeadLetterPage(tuple(delivery(d) for d in m.dead_letters), m.next_page_token)


def selection(
    delivery_ids: Iterable[str],
    chosen: DeadLetterFilter | None,
    dry_run: bool,
    limit: int,
    request_id: str | None,
) -> dict[str, Any]:
    """Fields of a request to replay or purge."""
    ids = several("delivery_ids", delivery_ids)
    if bool(ids) == (chosen is not None):
        raise InvalidRequest("give either delivery_ids or a filter")
    return {
        "delivery_ids": ids,
        "filter": dead_letter_filter(chosen) if chosen is not None else None,
        "dry_run": dry_run,
        "limit": limit,
        "request_id": named(request_id),
    }


def operation(m: pb.Operation) -> Operation:
    chosen = None
    if m.HasField("filter"):
        f = m.filter
        chosen = DeadLetterFilter(
            f.host,
            f.activity_type,
            f.actor,
            reason_of(f.reason),
            f.http_status,
            time_of(f, "start_time"),
            time_of(f, "end_time"),
        )
    return Operation(
        operation_id=m.operation_id,
        kind=m.kind,
        principal=m.principal,
        create_time=time_of(m, "create_time"),
        complete_time=time_of(m, "complete_time"),
        total=m.total,
        completed=m.completed,
        failed=m.failed,
        limit_reached=m.limit_reached,
        dry_run=m.dry_run,
        done=m.done,
        error=m.error,
        filter=chosen,
        limit=m.limit,
    )


def operation_page(m: pb.ListOperationsResponse) -> OperationPage:
    return OperationPage(tuple(operation(o) for o in m.operations), m.next_page_token)


def list_hosts_request(
    order: HostOrder | str,
    states: Iterable[HostState | str],
    name_contains: str,
    page_size: int,
    page_token: str,
) -> pb.ListHostsRequest:
    name = whole_text("order", order).upper()
    wanted = choices("states", states, pb.HostState, "HOST_STATE_", "a state of hosts")
    try:
        by = pb.HostOrder.Value(f"HOST_ORDER_{'UNSPECIFIED' if name == 'NAME' else name}")
    except ValueError:
        raise InvalidRequest(f"order: {order!r} is not an order of hosts") from None
    return build(
        pb.ListHostsRequest,
        states=wanted,
        name_contains=name_contains,
        order=by,
        page_size=page_size,
        page_token=page_token,
    )


def host(m: pb.Host) -> Host:
    state = name_of(pb.HostState, m.state, "HOST_STATE_")
    return Host(
        host=m.host,
        state=HostState(state) if state in HostState.__members__ else HostState.UNSPECIFIED,
        backlog=m.backlog,
        in_flight=m.in_flight,
        failures=m.failures,
        next_probe_time=time_of(m, "next_probe_time"),
        last_success_time=time_of(m, "last_success_time"),
        last_failure_time=time_of(m, "last_failure_time"),
        latency=duration_of(m.latency),
        policy=HostPolicy(m.policy.max_in_flight, m.policy.rate_per_second, m.policy.burst),
        pause_reason=m.pause_reason,
        pause_end_time=time_of(m, "pause_end_time"),
    )


def host_page(m: pb.ListHostsResponse) -> HostPage:
    return HostPage(tuple(host(h) for h in m.hosts), m.next_page_token)


def host_attempts(m: pb.GetHostResponse) -> tuple[HostAttempt, ...]:
    return tuple(
        HostAttempt(
            a.delivery_id,
            Attempt(time_of(a, "time"), duration_of(a.latency), a.http_status, reason_of(a.reason)),
        )
        for a in m.recent_attempts
    )


def queue_stats(m: pb.GetQueueStatsResponse) -> QueueStats:
    return QueueStats(
        accepted=m.accepted,
        delivered=m.delivered,
        dead=m.dead,
        purged=m.purged,
        cancelled=m.cancelled,
        superseded=m.superseded,
        expired=m.expired,
        pending=m.pending,
        ready=m.ready,
        in_flight=m.in_flight,
        retry=m.retry,
        scheduled=m.scheduled,
        parked=m.parked,
        priorities={
            priority_of(p.priority): PriorityStats(p.ready, p.in_flight, duration_of(p.oldest_age))
            for p in m.priorities
        },
        rates=tuple(
            Rates(
                duration_of(r.window),
                r.accepted_per_second,
                r.attempted_per_second,
                r.delivered_per_second,
                r.failed_per_second,
            )
            for r in m.rates
        ),
        consumers=m.consumers,
        partitions=m.partitions,
        conserved=m.conserved,
        redis_server=m.redis.server,
        redis_version=m.redis.version,
        redis_used_memory=m.redis.used_memory_bytes,
        redis_max_memory=m.redis.max_memory_bytes,
        archive_backlog=m.archive.backlog,
        archive_lag=duration_of(m.archive.lag),
        read_time=time_of(m, "read_time"),
        origins={o.origin: o.pending for o in m.origins},
        bottleneck=name_of(pb.Bottleneck, m.bottleneck, "BOTTLENECK_"),
        open_circuits=m.open_circuits,
        parked_behind_circuits=m.parked_behind_circuits,
    )


def retry_stats(m: pb.GetRetryStatsResponse) -> RetryStats:
    return RetryStats(
        retry=m.retry,
        scheduled=m.scheduled,
        due=m.due,
        next_due_time=time_of(m, "next_due_time"),
        by_type={c.activity_type: c.count for c in m.by_type},
        by_attempt={c.attempts: c.count for c in m.by_attempt},
        by_reason={reason_of(c.reason): c.count for c in m.by_reason},
        histogram=tuple(
            (duration_of(b.due_within) if b.HasField("due_within") else None, b.count) for b in m.histogram
        ),
    )


def _category(m: pb.MemoryCategory) -> MemoryCategory:
    return MemoryCategory(m.name, m.entries, m.bytes)


def memory_status(m: pb.GetMemoryStatusResponse) -> MemoryStatus:
    return MemoryStatus(
        used_bytes=m.used_bytes,
        peak_bytes=m.peak_bytes,
        rss_bytes=m.rss_bytes,
        fragmentation_ratio=m.fragmentation_ratio,
        max_bytes=m.max_bytes,
        warning_threshold_bytes=m.warning_threshold_bytes,
        critical_threshold_bytes=m.critical_threshold_bytes,
        state=name_of(pb.MemoryState, m.state, "MEMORY_STATE_"),
        eviction_policy=m.eviction_policy,
        categories=tuple(_category(c) for c in m.categories),
    )


def cleanup(m: pb.ForceCleanupResponse) -> Cleanup:
    return Cleanup(tuple(_category(c) for c in m.freed), m.freed_bytes)


def list_audit_request(
    principal: str, action: str, start_time: When, end_time: When, page_size: int, page_token: str
) -> pb.ListAuditEventsRequest:
    return build(
        pb.ListAuditEventsRequest,
        principal=principal,
        action=action,
        start_time=timestamp_of("start_time", start_time),
        end_time=timestamp_of("end_time", end_time),
        page_size=page_size,
        page_token=page_token,
    )


def audit_page(m: pb.ListAuditEventsResponse) -> AuditPage:
    events = tuple(
        AuditEvent(
            e.audit_event_id, time_of(e, "time"), e.principal, e.action, e.subject, MessageToDict(e.details)
        )
        for e in m.audit_events
    )
    return AuditPage(events, m.next_page_token)
