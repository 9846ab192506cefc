"""What `FedsvcClient` offers to operators. `_operators_async.py` has the same for code with an event loop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any

from fedsvc_client import _operator_wire as _wire
from fedsvc_client import _schedule_wire
from fedsvc_client import _wire as _common
from fedsvc_client._arguments import build, named, new_request_id
from fedsvc_client._operator_types import (
    AuditPage,
    Cleanup,
    DeadLetterFilter,
    DeadLetterPage,
    Host,
    HostAttempt,
    HostOrder,
    HostPage,
    HostState,
    MemoryStatus,
    Operation,
    OperationPage,
    RetryStats,
    Schedule,
    SchedulePage,
)
from fedsvc_client._proto import operations_service_pb2 as pb
from fedsvc_client._types import Delivery, QueueStats


class Operators:
    """Every call takes at most `timeout` seconds, the client's own if it is None."""

    def _call(self, service: str, method: str, request: Any, timeout: float | None) -> Any:
        raise NotImplementedError

    def _stream(self, service: str, method: str, request: Any) -> Iterator[Any]:
        raise NotImplementedError

    def get_queue_stats(self, *, timeout: float | None = None) -> QueueStats:
        """What the queue holds and does."""
        request = pb.GetQueueStatsRequest()
        return _wire.queue_stats(self._call("operations", "GetQueueStats", request, timeout))

    def watch_queue_stats(self, interval: timedelta | float = 1.0) -> Iterator[QueueStats]:
        """What `get_queue_stats` gives, at once and every `interval` (seconds, at least 0.1), until the
        iterator is closed. A connection that breaks is made again; raises Unavailable when that takes longer
        than the client's timeout."""
        request = build(pb.WatchQueueStatsRequest, interval=_wire.duration("interval", interval))
        for response in self._stream("operations", "WatchQueueStats", request):
            yield _wire.queue_stats(response.stats)

    def get_retry_stats(self, *, timeout: float | None = None) -> RetryStats:
        """What waits for another attempt, or for its time."""
        request = pb.GetRetryStatsRequest()
        return _wire.retry_stats(self._call("operations", "GetRetryStats", request, timeout))

    def get_memory_status(self, *, timeout: float | None = None) -> MemoryStatus:
        """How full Redis is, and of what."""
        request = pb.GetMemoryStatusRequest()
        return _wire.memory_status(self._call("operations", "GetMemoryStatus", request, timeout))

    def force_cleanup(self, *, aggressive: bool = False, timeout: float | None = None) -> Cleanup:
        """Forget now what has had its time. `aggressive`: also what retention would keep for a while."""
        request = build(pb.ForceCleanupRequest, aggressive=aggressive, request_id=new_request_id())
        return _wire.cleanup(self._call("operations", "ForceCleanup", request, timeout))

    def list_dead_letters(
        self,
        filter: DeadLetterFilter | None = None,
        *,
        page_size: int = 0,
        page_token: str = "",
        timeout: float | None = None,
    ) -> DeadLetterPage:
        """One page of the dead letters that fit, newest first. It may be short and yet not the last."""
        request = build(
            pb.ListDeadLettersRequest,
            filter=_wire.dead_letter_filter(filter) if filter is not None else None,
            page_size=page_size,
            page_token=page_token,
        )
        return _wire.dead_letter_page(self._call("operations", "ListDeadLetters", request, timeout))

    def get_dead_letter(self, delivery_id: str, *, timeout: float | None = None) -> tuple[Delivery, bytes]:
        """One dead letter, and the exact bytes that were sent. Raises NotFound."""
        request = build(pb.GetDeadLetterRequest, delivery_id=delivery_id)
        response = self._call("operations", "GetDeadLetter", request, timeout)
        return _common.delivery(response.dead_letter), response.activity

    def replay_dead_letters(
        self,
        delivery_ids: Iterable[str] = (),
        *,
        filter: DeadLetterFilter | None = None,
        dry_run: bool = False,
        limit: int = 0,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Operation:
        """Put dead letters back on the queue: these (1000 at most), or those that fit (an empty filter: all
        that there are now). Goes on in the background: see `get_operation`. `dry_run` only counts; `limit`
        of 0 is none."""
        fields = _wire.selection(delivery_ids, filter, dry_run, limit, request_id)
        request = build(pb.ReplayDeadLettersRequest, **fields)
        response = self._call("operations", "ReplayDeadLetters", request, timeout)
        return _wire.operation(response.operation)

    def purge_dead_letters(
        self,
        delivery_ids: Iterable[str] = (),
        *,
        filter: DeadLetterFilter | None = None,
        dry_run: bool = False,
        limit: int = 0,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Operation:
        """As `replay_dead_letters`, but they are removed for good."""
        fields = _wire.selection(delivery_ids, filter, dry_run, limit, request_id)
        request = build(pb.PurgeDeadLettersRequest, **fields)
        response = self._call("operations", "PurgeDeadLetters", request, timeout)
        return _wire.operation(response.operation)

    def get_operation(self, operation_id: str, *, timeout: float | None = None) -> Operation:
        """How far a replay or purge is. Raises NotFound."""
        request = build(pb.GetOperationRequest, operation_id=operation_id)
        response = self._call("operations", "GetOperation", request, timeout)
        return _wire.operation(response.operation)

    def list_operations(
        self, *, page_size: int = 0, page_token: str = "", timeout: float | None = None
    ) -> OperationPage:
        """One page of replays and purges, newest first."""
        request = build(pb.ListOperationsRequest, page_size=page_size, page_token=page_token)
        return _wire.operation_page(self._call("operations", "ListOperations", request, timeout))

    def list_hosts(
        self,
        *,
        order: HostOrder | str = HostOrder.NAME,
        states: Iterable[HostState | str] = (),
        name_contains: str = "",
        page_size: int = 0,
        page_token: str = "",
        timeout: float | None = None,
    ) -> HostPage:
        """One page of hosts, by name or the greatest first."""
        request = _wire.list_hosts_request(order, states, name_contains, page_size, page_token)
        return _wire.host_page(self._call("operations", "ListHosts", request, timeout))

    def get_host(self, host: str, *, timeout: float | None = None) -> tuple[Host, tuple[HostAttempt, ...]]:
        """A host, and recent attempts to send there, newest first. Raises NotFound."""
        request = build(pb.GetHostRequest, host=host)
        response = self._call("operations", "GetHost", request, timeout)
        return _wire.host(response.host), _wire.host_attempts(response)

    def pause_host(
        self,
        host: str,
        *,
        reason: str = "",
        duration: timedelta | float | None = None,
        timeout: float | None = None,
    ) -> Host:
        """Send nothing to a host for that long (seconds), or until `resume_host`."""
        request = build(
            pb.PauseHostRequest,
            host=host,
            reason=reason,
            duration=_wire.duration("duration", duration),
            request_id=new_request_id(),
        )
        response = self._call("operations", "PauseHost", request, timeout)
        return _wire.host(response.host)

    def resume_host(self, host: str, *, timeout: float | None = None) -> Host:
        """Send to a host again."""
        request = build(pb.ResumeHostRequest, host=host, request_id=new_request_id())
        response = self._call("operations", "ResumeHost", request, timeout)
        return _wire.host(response.host)

    def update_host_policy(
        self,
        host: str,
        *,
        max_in_flight: int = 0,
        rate_per_second: float = 0.0,
        burst: int = 0,
        timeout: float | None = None,
    ) -> Host:
        """Set a host's limits; 0 stands for the default of each."""
        policy = build(
            pb.HostPolicy, max_in_flight=max_in_flight, rate_per_second=rate_per_second, burst=burst
        )
        request = build(pb.UpdateHostPolicyRequest, host=host, policy=policy, request_id=new_request_id())
        response = self._call("operations", "UpdateHostPolicy", request, timeout)
        return _wire.host(response.host)

    def create_schedule(
        self, schedule: Schedule, *, request_id: str | None = None, timeout: float | None = None
    ) -> Schedule:
        """Have something done again and again. Without an id it gets one. Sending activities needs the scope
        `deliver` too."""
        request = build(
            pb.CreateScheduleRequest, schedule=_schedule_wire.to_wire(schedule), request_id=named(request_id)
        )
        response = self._call("operations", "CreateSchedule", request, timeout)
        return _schedule_wire.from_wire(response.schedule)

    def get_schedule(self, schedule_id: str, *, timeout: float | None = None) -> Schedule:
        """Raises NotFound."""
        request = build(pb.GetScheduleRequest, schedule_id=schedule_id)
        response = self._call("operations", "GetSchedule", request, timeout)
        return _schedule_wire.from_wire(response.schedule)

    def list_schedules(
        self, *, page_size: int = 0, page_token: str = "", timeout: float | None = None
    ) -> SchedulePage:
        """One page of schedules, by id."""
        request = build(pb.ListSchedulesRequest, page_size=page_size, page_token=page_token)
        return _schedule_wire.page(self._call("operations", "ListSchedules", request, timeout))

    def update_schedule(self, schedule: Schedule, *, timeout: float | None = None) -> Schedule:
        """Put this in the place of the schedule of the same id. Raises NotFound."""
        request = build(
            pb.UpdateScheduleRequest, schedule=_schedule_wire.to_wire(schedule), request_id=new_request_id()
        )
        response = self._call("operations", "UpdateSchedule", request, timeout)
        return _schedule_wire.from_wire(response.schedule)

    def pause_schedule(self, schedule_id: str, *, timeout: float | None = None) -> Schedule:
        """A run that is on its way goes on. Raises NotFound."""
        request = build(pb.PauseScheduleRequest, schedule_id=schedule_id, request_id=new_request_id())
        response = self._call("operations", "PauseSchedule", request, timeout)
        return _schedule_wire.from_wire(response.schedule)

    def resume_schedule(self, schedule_id: str, *, timeout: float | None = None) -> Schedule:
        """What would have run meanwhile is not made up for. Raises NotFound."""
        request = build(pb.ResumeScheduleRequest, schedule_id=schedule_id, request_id=new_request_id())
        response = self._call("operations", "ResumeSchedule", request, timeout)
        return _schedule_wire.from_wire(response.schedule)

    def delete_schedule(self, schedule_id: str, *, timeout: float | None = None) -> None:
        """Raises NotFound."""
        request = build(pb.DeleteScheduleRequest, schedule_id=schedule_id, request_id=new_request_id())
        self._call("operations", "DeleteSchedule", request, timeout)

    def list_audit_events(
        self,
        *,
        principal: str = "",
        action: str = "",
        start_time: datetime | None = None,
        end_time: datetime | None = None,
        page_size: int = 0,
        page_token: str = "",
        timeout: float | None = None,
    ) -> AuditPage:
        """Who changed what, newest first."""
        request = _wire.list_audit_request(principal, action, start_time, end_time, page_size, page_token)
        return _wire.audit_page(self._call("operations", "ListAuditEvents", request, timeout))
