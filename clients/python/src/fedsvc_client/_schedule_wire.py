"""Between schedules as operators see them and what travels. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from google.protobuf.struct_pb2 import Struct

from fedsvc_client._arguments import build, inbox_list, of_kind, optional_text, whole_text
from fedsvc_client._exceptions import InvalidRequest
from fedsvc_client._operator_types import Schedule, ScheduledFanOut, SchedulePage
from fedsvc_client._operator_wire import duration
from fedsvc_client._proto import operations_service_pb2 as pb
from fedsvc_client._wire import activity_bytes, duration_of, name_of, priority_named, priority_of, time_of


def to_wire(s: Schedule) -> pb.Schedule:
    of_kind("schedule", s, Schedule)
    if bool(s.cron) == (s.interval is not None):
        raise InvalidRequest("give either cron or interval")
    if bool(s.task) == (s.fan_out is not None):
        raise InvalidRequest("give either fan_out or task")
    missed, task = whole_text("missed_runs", s.missed_runs).upper(), optional_text("task", s.task).upper()
    try:
        missed_run_policy = pb.MissedRunPolicy.Value(f"MISSED_RUN_POLICY_{missed}")
    except ValueError:
        raise InvalidRequest(f"missed_runs: {missed!r} is not a policy") from None
    try:
        maintenance_task = pb.MaintenanceTask.Value(f"MAINTENANCE_TASK_{task}") if task else None
    except ValueError:
        raise InvalidRequest(f"task: {task!r} is not a task") from None
    return build(
        pb.Schedule,
        schedule_id=optional_text("schedule_id", s.schedule_id),
        description=s.description,
        time_zone=s.time_zone,
        missed_run_policy=missed_run_policy,
        paused=s.paused,
        cron=s.cron or None,
        interval=duration("interval", s.interval),
        task=maintenance_task,
        fan_out=None if s.fan_out is None else _fan_out(s.fan_out),
        task_arguments=_arguments(s.task_arguments),
    )


def _fan_out(f: ScheduledFanOut) -> pb.ScheduledFanOut:
    of_kind("fan_out", f, ScheduledFanOut)
    return build(
        pb.ScheduledFanOut,
        activity=activity_bytes(f.activity),
        inboxes=inbox_list(f.inboxes),
        key_id=f.key_id,
        priority=priority_named(f.priority),
    )


def _arguments(given: Mapping[str, Any]) -> Struct | None:
    if not given:
        return None
    of_kind("task_arguments", given, Mapping)
    try:
        return ParseDict(dict(given), Struct())
    except (ParseError, TypeError, ValueError) as error:
        raise InvalidRequest(f"task_arguments: {error}") from None


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
