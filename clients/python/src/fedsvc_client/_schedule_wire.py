"""Between schedules as operators see them and what travels. No I/O."""

from __future__ import annotations

from google.protobuf.json_format import MessageToDict, ParseDict, ParseError

from fedsvc_client._exceptions import InvalidRequest
from fedsvc_client._operator_types import Schedule, ScheduledFanOut, SchedulePage
from fedsvc_client._operator_wire import duration
from fedsvc_client._proto import operations_service_pb2 as pb
from fedsvc_client._wire import duration_of, inbox_list, name_of, priority_named, priority_of, time_of


def to_wire(s: Schedule) -> pb.Schedule:
    if bool(s.cron) == (s.interval is not None):
        raise InvalidRequest("give either cron or interval")
    if bool(s.task) == (s.fan_out is not None):
        raise InvalidRequest("give either fan_out or task")
    try:
        missed = pb.MissedRunPolicy.Value(f"MISSED_RUN_POLICY_{s.missed_runs.upper()}")
        task = pb.MaintenanceTask.Value(f"MAINTENANCE_TASK_{s.task.upper() or 'UNSPECIFIED'}")
    except ValueError as error:
        raise InvalidRequest(f"not a task or a policy: {error}") from None
    message = pb.Schedule(
        schedule_id=s.schedule_id,
        description=s.description,
        time_zone=s.time_zone,
        missed_run_policy=missed,
        paused=s.paused,
    )
    if s.interval is None:
        message.cron = s.cron
    else:
        span = duration("interval", s.interval)
        assert span is not None
        message.interval.CopyFrom(span)
    if s.fan_out is None:
        message.task = task
    else:
        message.fan_out.activity = s.fan_out.activity
        message.fan_out.inboxes.extend(inbox_list(s.fan_out.inboxes))
        message.fan_out.key_id = s.fan_out.key_id
        message.fan_out.priority = priority_named(s.fan_out.priority)
    if s.task_arguments:
        try:
            ParseDict(dict(s.task_arguments), message.task_arguments)
        except ParseError as error:
            raise InvalidRequest(f"task_arguments: {error}") from None
    return message


def from_wire(m: pb.Schedule) -> Schedule:
    f = m.fan_out
    return Schedule(
        schedule_id=m.schedule_id,
        cron=m.cron,
        interval=duration_of(m.interval) if m.HasField("interval") else None,
        time_zone=m.time_zone,
        fan_out=ScheduledFanOut(f.activity, tuple(f.inboxes), f.key_id, priority_of(f.priority))
        if m.HasField("fan_out")
        else None,
        task=name_of(pb.MaintenanceTask, m.task, "MAINTENANCE_TASK_") if m.HasField("task") else "",
        task_arguments=MessageToDict(m.task_arguments),
        description=m.description,
        missed_runs=name_of(pb.MissedRunPolicy, m.missed_run_policy, "MISSED_RUN_POLICY_"),
        paused=m.paused,
        last_run_time=time_of(m, "last_run_time"),
        next_run_time=time_of(m, "next_run_time"),
        last_error=m.last_error,
    )


def page(m: pb.ListSchedulesResponse) -> SchedulePage:
    return SchedulePage(tuple(from_wire(s) for s in m.schedules), m.next_page_token)
