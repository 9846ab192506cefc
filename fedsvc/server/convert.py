"""From what the queue and the archive tell to what the contract says."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from fedsvc.config import Settings
from fedsvc.domain.audit import AuditEvent
from fedsvc.domain.delivery import Attempt, Delivery, DeliveryId
from fedsvc.domain.events import EventType, HostEvent
from fedsvc.domain.message import Message
from fedsvc.domain.operation import Operation
from fedsvc.domain.schedule import Schedule
from fedsvc.queue.bottleneck import bottleneck
from fedsvc.queue.hosts import Circuit, HostState
from fedsvc.queue.key_registry import RegisteredKey
from fedsvc.queue.memory_usage import MemoryCategory
from fedsvc.queue.producer import Place, Terms
from fedsvc.queue.server_info import ServerInfo
from fedsvc.queue.stats import DUE_WITHIN_S, QueueStats, RetryStats
from fedsvc.server.fields import END_S
from fedsvc.v1 import delivery_service_pb2 as pb
from fedsvc.v1 import key_service_pb2 as keys
from fedsvc.v1 import operations_service_pb2 as operations
from fedsvc.v1 import types_pb2 as types

#: whose pending deliveries are told one by one
MOST_ORIGINS: Final = 100
_CIRCUITS = {
    Circuit.CLOSED: operations.HOST_STATE_CLOSED,
    Circuit.OPEN: operations.HOST_STATE_OPEN,
    Circuit.HALF_OPEN: operations.HOST_STATE_HALF_OPEN,
    Circuit.PAUSED: operations.HOST_STATE_PAUSED,
    Circuit.GONE: operations.HOST_STATE_GONE,
}
#: by number of the contract
CIRCUITS: Final = {int(state): circuit for circuit, state in _CIRCUITS.items()}


def timestamp(ms: int) -> Timestamp | None:
    """Of milliseconds since the epoch; None for 0."""
    return Timestamp(seconds=ms // 1000, nanos=ms % 1000 * 1_000_000) if ms else None


def duration(ms: int) -> Duration:
    return Duration(seconds=ms // 1000, nanos=ms % 1000 * 1_000_000)


# The numbers of states, reasons and priorities are the same here and in the contract; a test says so.


def delivery(d: Delivery) -> types.Delivery:
    return types.Delivery(
        delivery_id=str(d.id),
        activity_id=d.activity_id,
        activity_type=d.activity_type,
        actor=d.actor,
        inbox=d.inbox,
        host=d.host,
        origin=d.origin,
        key_id=d.key_id,
        state=types.DeliveryState.ValueType(d.state),
        priority=types.Priority.ValueType(d.priority),
        attempts=d.attempts,
        reason=types.Reason.ValueType(d.reason or 0),
        http_status=d.status,
        response_snippet=d.snippet,
        accept_time=timestamp(d.accepted_ms),
        not_before=timestamp(d.not_before_ms),
        next_attempt_time=timestamp(d.next_attempt_ms),
        expire_time=timestamp(d.expire_ms),
        complete_time=timestamp(d.completed_ms),
        attempt_history=[attempt(a) for a in d.history],
        ordering_key=d.ordering_key,
        request_id=d.request_id,
    )


def accepted(id: DeliveryId, message: Message, place: Place, terms: Terms) -> types.Delivery:
    """A delivery as it is when it has just been accepted. Straight from what was: each call makes one, which
    a `Delivery` in between would make dearer."""
    waits_ms = terms.not_before_ms if terms.not_before_ms > id.accepted_ms else 0
    return types.Delivery(
        delivery_id=str(id),
        activity_id=message.activity_id,
        activity_type=message.activity_type,
        actor=message.actor,
        inbox=place.url,
        host=place.host,
        origin=message.origin,
        key_id=message.key_id,
        state=types.DELIVERY_STATE_SCHEDULED if waits_ms else types.DELIVERY_STATE_READY,
        priority=types.Priority.ValueType(terms.priority),
        accept_time=timestamp(id.accepted_ms),
        not_before=timestamp(waits_ms),
        next_attempt_time=timestamp(waits_ms),
        expire_time=timestamp(terms.expire_ms),
        ordering_key=message.ordering_key,
        request_id=terms.request_id,
    )


def seen(cursor: str, entry: Delivery | HostEvent | None) -> pb.WatchOutcomesResponse:
    if entry is None:
        return pb.WatchOutcomesResponse(cursor=cursor, heartbeat=True)
    if isinstance(entry, Delivery):
        return pb.WatchOutcomesResponse(
            cursor=cursor,
            event_type=pb.EVENT_TYPE_OUTCOME,
            time=timestamp(entry.completed_ms),
            delivery=delivery(entry),
            host=entry.host,
        )
    return pb.WatchOutcomesResponse(
        cursor=cursor,
        event_type=pb.EventType.ValueType(entry.type),
        time=timestamp(entry.number // 1000),
        host=entry.host,
        inbox=entry.detail if entry.type is EventType.INBOX_GONE else "",
        key_id=entry.detail if entry.type is EventType.KEY_REJECTED else "",
    )


def key(k: RegisteredKey) -> keys.Key:
    return keys.Key(
        key_id=k.key_id,
        origin=k.origin,
        algorithm=keys.KEY_ALGORITHM_RSA if k.algorithm == "rsa" else keys.KEY_ALGORITHM_ED25519,
        bits=k.bits,
        fingerprint=k.fingerprint,
        public_key_pem=k.public_pem,
        create_time=timestamp(k.created_ms),
        deletion_pending=k.leaving,
    )


def attempt(a: Attempt) -> types.Attempt:
    return types.Attempt(
        time=timestamp(a.time_ms),
        latency=duration(a.latency_ms),
        http_status=a.status,
        reason=types.Reason.ValueType(a.reason),
    )


def host_attempt(id: DeliveryId, a: Attempt) -> types.Attempt:
    told = attempt(a)
    told.delivery_id = str(id)
    return told


def queue_stats(
    stats: QueueStats, info: ServerInfo, settings: Settings, origins: frozenset[str] | None = None
) -> operations.GetQueueStatsResponse:
    """For a caller that may see these `origins`, or all. The totals are of all in any case."""
    critical = _memory_state(info, settings) == operations.MEMORY_STATE_CRITICAL
    seen = ((origin, n) for origin, n in stats.origins.items() if origins is None or origin in origins)
    return operations.GetQueueStatsResponse(
        accepted=stats.counter("accepted"),
        delivered=stats.counter("delivered"),
        dead=stats.counter("dead"),
        purged=stats.counter("purged"),
        cancelled=stats.counter("cancelled"),
        superseded=stats.counter("superseded"),
        expired=stats.counter("expired"),
        pending=stats.pending,
        ready=stats.ready,
        in_flight=stats.in_flight,
        retry=stats.retry,
        scheduled=stats.scheduled,
        parked=stats.parked,
        priorities=[
            operations.PriorityStats(
                priority=types.Priority.ValueType(priority),
                ready=figures.ready,
                in_flight=figures.in_flight,
                oldest_age=duration(figures.oldest_age_ms),
            )
            for priority, figures in stats.priorities.items()
        ],
        rates=[
            operations.Rates(
                window=duration(rates.window_s * 1000),
                accepted_per_second=rates.accepted,
                attempted_per_second=rates.attempted,
                delivered_per_second=rates.delivered,
                failed_per_second=rates.failed,
            )
            for rates in stats.rates
        ],
        consumers=stats.consumers,
        partitions=stats.partitions,
        conserved=stats.conserved,
        redis=operations.RedisStatus(
            server=info.server,
            version=info.version,
            used_memory_bytes=info.used_memory,
            max_memory_bytes=info.max_memory,
        ),
        archive=operations.ArchiveStatus(backlog=stats.archive_backlog, lag=duration(stats.archive_lag_ms)),
        read_time=timestamp(stats.now_ms),
        origins=[
            operations.OriginStats(origin=origin, pending=n)
            for origin, n in heapq.nsmallest(MOST_ORIGINS, seen, key=lambda item: (-item[1], item[0]))
        ],
        bottleneck=operations.Bottleneck.ValueType(bottleneck(stats, memory_critical=critical)),
        open_circuits=stats.open_circuits,
        parked_behind_circuits=stats.parked_behind_circuits,
    )


def host(state: HostState) -> operations.Host:
    for_ever = state.paused_until_ms >= END_S * 1000
    return operations.Host(
        host=state.host,
        state=_CIRCUITS[state.circuit],
        backlog=state.parked,
        in_flight=state.in_flight,
        failures=state.failures,
        next_probe_time=timestamp(state.next_probe_ms),
        last_success_time=timestamp(state.last_success_ms),
        last_failure_time=timestamp(state.last_failure_ms),
        latency=duration(int(state.latency_ms)),
        policy=operations.HostPolicy(
            max_in_flight=state.policy.max_in_flight,
            rate_per_second=state.policy.rate,
            burst=int(state.policy.burst),
        ),
        pause_reason=state.pause_reason,
        pause_end_time=None if for_ever else timestamp(state.paused_until_ms),
    )


def retry_stats(stats: RetryStats) -> operations.GetRetryStatsResponse:
    bounds: list[Duration | None] = [duration(s * 1000) for s in DUE_WITHIN_S]
    return operations.GetRetryStatsResponse(
        retry=stats.retry,
        scheduled=stats.scheduled,
        due=stats.due,
        next_due_time=timestamp(stats.next_due_ms or 0),
        by_type=[
            operations.RetryTypeCount(activity_type=name, count=n)
            for name, n in sorted(stats.by_type.items())
        ],
        by_attempt=[
            operations.RetryAttemptCount(attempts=attempts, count=n)
            for attempts, n in sorted(stats.by_attempt.items())
        ],
        by_reason=[
            operations.RetryReasonCount(reason=types.Reason.ValueType(reason), count=n)
            for reason, n in sorted(stats.by_reason.items())
        ],
        histogram=[
            operations.DueBucket(due_within=bound, count=n)
            for bound, n in zip([*bounds, None], stats.histogram, strict=True)
        ],
    )


def _memory_state(info: ServerInfo, settings: Settings) -> operations.MemoryState.ValueType:
    if not info.max_memory or info.used_memory < int(info.max_memory * settings.memory_warning):
        return operations.MEMORY_STATE_OK
    if info.used_memory < int(info.max_memory * settings.memory_critical):
        return operations.MEMORY_STATE_WARNING
    return operations.MEMORY_STATE_CRITICAL


def memory_status(
    info: ServerInfo, settings: Settings, usage: Sequence[MemoryCategory]
) -> operations.GetMemoryStatusResponse:
    """`usage` is completed by what is in none of its categories."""
    rest = info.used_memory - sum(category.bytes for category in usage)
    other = [MemoryCategory("other", 0, max(0, rest))] if usage else []
    return operations.GetMemoryStatusResponse(
        used_bytes=info.used_memory,
        peak_bytes=info.peak_memory,
        rss_bytes=info.rss_memory,
        fragmentation_ratio=info.fragmentation,
        max_bytes=info.max_memory,
        warning_threshold_bytes=int(info.max_memory * settings.memory_warning),
        critical_threshold_bytes=int(info.max_memory * settings.memory_critical),
        state=_memory_state(info, settings),
        eviction_policy=info.policy,
        categories=[
            operations.MemoryCategory(name=name, entries=entries, bytes=size)
            for name, entries, size in (*usage, *other)
        ],
    )


def audit_event(e: AuditEvent) -> operations.AuditEvent:
    event = operations.AuditEvent(
        audit_event_id=e.id,
        time=timestamp(e.time_ms),
        principal=e.principal,
        action=e.action,
        subject=e.subject,
    )
    event.details.update(dict(e.details))
    return event


def operation(o: Operation) -> operations.Operation:
    order, progress = o.order, o.progress
    chosen = order.chosen
    told = operations.Operation(
        operation_id=o.id,
        kind=order.kind.value,
        principal=o.principal,
        create_time=timestamp(o.created_ms),
        complete_time=timestamp(o.ended_ms),
        total=progress.total,
        completed=o.completed,
        failed=progress.failed,
        limit_reached=progress.limit_reached,
        dry_run=order.dry_run,
        done=bool(o.ended_ms),
        error=o.error,
        delivery_ids_count=len(order.ids),
        limit=order.limit,
    )
    if not order.ids:
        told.filter.CopyFrom(
            operations.DeadLetterFilter(
                host=chosen.host,
                activity_type=chosen.activity_type,
                actor=chosen.actor,
                reason=types.Reason.ValueType(chosen.reason or 0),
                http_status=chosen.status,
                start_time=timestamp(chosen.start_ms),
                end_time=timestamp(chosen.end_ms),
            )
        )
    return told


def schedule(s: Schedule) -> operations.Schedule:
    told = operations.Schedule(
        schedule_id=s.id,
        description=s.description,
        time_zone=s.recurrence.time_zone,
        missed_run_policy=operations.MissedRunPolicy.ValueType(s.missed),
        paused=s.paused,
        last_run_time=timestamp(s.last_run_ms),
        next_run_time=timestamp(s.next_run_ms),
        last_error=s.last_error,
    )
    if s.recurrence.cron:
        told.cron = s.recurrence.cron
    else:
        told.interval.FromMilliseconds(s.recurrence.interval_ms)
    if s.fan_out is not None:
        told.fan_out.CopyFrom(
            operations.ScheduledFanOut(
                activity=s.fan_out.activity,
                inboxes=s.fan_out.inboxes,
                key_id=s.fan_out.key_id,
                priority=types.Priority.ValueType(s.fan_out.priority or 0),
            )
        )
    elif s.task is not None:
        told.task = operations.MaintenanceTask.ValueType(s.task)
        told.task_arguments.update(s.arguments)
    return told
