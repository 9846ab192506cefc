"""Figures of the queue: what travels is read. No I/O."""

from __future__ import annotations

from fedsvc_client._proto import operations_service_pb2 as pb
from fedsvc_client._types import PriorityStats, QueueStats, Rates
from fedsvc_client._wire import duration_of, name_of, priority_of, time_of


def read(m: pb.GetQueueStatsResponse) -> QueueStats:
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
