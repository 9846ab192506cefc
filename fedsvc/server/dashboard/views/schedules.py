"""What is done again and again: listed, made, paused, resumed, deleted."""

from __future__ import annotations

from collections.abc import Mapping

from aiohttp import web

from fedsvc.domain.schedule import TASK_ARGUMENTS
from fedsvc.server.dashboard.calls import CallFailed
from fedsvc.server.dashboard.visit import Visit, decimal, duration, invalid, seen, whole
from fedsvc.v1 import operations_service_pb2 as pb
from fedsvc.v1 import types_pb2

_SIZE = 100
_FIELDS = (
    "schedule_id", "description", "cron", "interval", "time_zone", "action", "task", "task_arguments",
    "activity", "inboxes", "key_id", "priority", "missed",
)  # fmt: skip
#: names of what tasks take, for who fills in the form
_ARGUMENTS = {
    task.name.replace("_", " ").lower(): tuple(taken) for task, taken in TASK_ARGUMENTS.items() if taken
}


async def listed(visit: Visit) -> web.Response:
    request = pb.ListSchedulesRequest(page_size=_SIZE, page_token=visit.query("page"))
    answer = await visit.call("ListSchedules", request)
    return visit.render("schedules.html", title="Schedules", answer=answer)


async def one(visit: Visit) -> web.Response:
    answer = await visit.call("GetSchedule", pb.GetScheduleRequest(schedule_id=_id(visit)))
    return visit.render("schedule.html", title=_id(visit), schedule=answer.schedule)


async def blank(visit: Visit) -> web.Response:
    visit.need("CreateSchedule")
    given = dict.fromkeys(_FIELDS, "") | {"time_zone": "UTC", "action": "task", "missed": "1"}
    return _form(visit, given, {})


async def create(visit: Visit) -> web.Response:
    given = {name: visit.field(name) for name in _FIELDS}
    try:
        answer = await visit.call("CreateSchedule", pb.CreateScheduleRequest(schedule=_schedule(given)))
    except CallFailed as failed:
        if not failed.problems:
            raise
        return _form(visit, given, failed.problems)
    return seen(visit.address(f"/schedules/{answer.schedule.schedule_id}", done="created"))


async def pause(visit: Visit) -> web.Response:
    await visit.call("PauseSchedule", pb.PauseScheduleRequest(schedule_id=_id(visit)))
    return seen(visit.address(f"/schedules/{_id(visit)}", done="paused"))


async def resume(visit: Visit) -> web.Response:
    await visit.call("ResumeSchedule", pb.ResumeScheduleRequest(schedule_id=_id(visit)))
    return seen(visit.address(f"/schedules/{_id(visit)}", done="resumed"))


async def delete(visit: Visit) -> web.Response:
    await visit.call("DeleteSchedule", pb.DeleteScheduleRequest(schedule_id=_id(visit)))
    return seen(visit.address("/schedules", done="deleted"))


def _form(visit: Visit, given: dict[str, str], problems: Mapping[str, str]) -> web.Response:
    return visit.render(
        "schedule_form.html",
        status=400 if problems else 200,
        title="New schedule",
        given=given,
        problems=problems,
        arguments=_ARGUMENTS,
    )


def _schedule(given: dict[str, str]) -> pb.Schedule:
    """Raises CallFailed."""
    schedule = pb.Schedule(
        schedule_id=given["schedule_id"],
        description=given["description"],
        time_zone=given["time_zone"],
        missed_run_policy=pb.MissedRunPolicy.ValueType(whole(given["missed"], "missed")),
    )
    if given["cron"]:
        schedule.cron = given["cron"]
    elif given["interval"]:
        seconds = decimal(given["interval"], "interval")
        schedule.interval.CopyFrom(duration(seconds, "schedule.interval"))
    if given["action"] == "fan_out":
        schedule.fan_out.activity = given["activity"].encode()
        schedule.fan_out.inboxes.extend(given["inboxes"].split())
        schedule.fan_out.key_id = given["key_id"]
        schedule.fan_out.priority = types_pb2.Priority.ValueType(whole(given["priority"], "priority"))
    else:
        schedule.task = pb.MaintenanceTask.ValueType(whole(given["task"], "task"))
        for line in given["task_arguments"].splitlines():
            name, found, value = line.partition("=")
            if not found:
                raise invalid("schedule.task_arguments", f"{line[:40]!r} is not NAME=VALUE")
            schedule.task_arguments[name.strip()] = _value(value.strip())
    return schedule


def _value(text: str) -> str | float | bool:
    if text in ("true", "false"):
        return text == "true"
    try:
        return float(text)
    except ValueError:
        return text


def _id(visit: Visit) -> str:
    return visit.request.match_info["id"]


PAGES = (("/schedules", listed), ("/schedules/new", blank), ("/schedules/{id}", one))
ACTIONS = (
    ("/schedules", create),
    ("/schedules/{id}/pause", pause),
    ("/schedules/{id}/resume", resume),
    ("/schedules/{id}/delete", delete),
)
