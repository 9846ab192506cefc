"""The part of OperationsService about what is done again and again."""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from dataclasses import replace
from typing import Any, Final

from google.protobuf.json_format import MessageToDict

from fedsvc.domain.dead_letters import DeadLetterFilter
from fedsvc.domain.delivery import Reason
from fedsvc.domain.inbox import origin_of
from fedsvc.domain.schedule import (
    LONGEST_MS,
    SHORTEST_MS,
    TASK_ARGUMENTS,
    FanOutTemplate,
    MissedRuns,
    Recurrence,
    Schedule,
    Task,
    run_name,
)
from fedsvc.errors import InvalidInput, NotFound, Overloaded, PermissionDenied
from fedsvc.queue.schedules import Schedules
from fedsvc.server import convert, pages
from fedsvc.server.audit import Audit
from fedsvc.server.caller import Scope, allowed_origins, caller
from fedsvc.server.errors import rpc
from fedsvc.server.fields import duration_ms, host_name, http_status, plain_text, priority, request_name
from fedsvc.server.intake import Intake
from fedsvc.server.limits import Limits
from fedsvc.v1 import operations_service_pb2 as pb

_ID: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_MAX_DESCRIPTION: Final = 512
#: schedules that are read at once, and bytes of them in a page, about: each may have FEDSVC_MAX_FAN_OUT
#: inboxes, and who reads the answers may take no more than 4 MiB, which is gRPC's default
_SLICE: Final = 20
_PAGE_BYTES: Final = 3 * 1024 * 1024
#: times that somebody else may change a schedule while it is being changed
_TRIES: Final = 10


class ScheduleDesk:
    def __init__(self, limits: Limits, schedules: Schedules, intake: Intake, audit: Audit) -> None:
        self._limits = limits
        self._schedules = schedules
        self._intake = intake
        self._audit = audit

    @rpc
    async def CreateSchedule(
        self, request: pb.CreateScheduleRequest, context: Any
    ) -> pb.CreateScheduleResponse:
        request_id = request_name(request.request_id)
        id = request.schedule.schedule_id or _new_id(request_id)
        schedule = await self._read(request.schedule, id, _now_ms())
        stored = await self._schedules.create(schedule, request_id=request_id)
        await self._audit.record("schedule.create", id, **_told(schedule))
        return pb.CreateScheduleResponse(schedule=convert.schedule(stored))

    @rpc
    async def GetSchedule(self, request: pb.GetScheduleRequest, context: Any) -> pb.GetScheduleResponse:
        id = _checked("schedule_id", request.schedule_id)
        found = await self._schedules.get(id)
        if not _visible(found):
            raise NotFound(f"there is no schedule {id}")
        return pb.GetScheduleResponse(schedule=convert.schedule(found))

    @rpc
    async def ListSchedules(self, request: pb.ListSchedulesRequest, context: Any) -> pb.ListSchedulesResponse:
        left = pages.page_size(request.page_size)
        after = pages.decode(request.page_token, "schedules", read=pages.text) or ""
        response, size = pb.ListSchedulesResponse(), 0
        while left > 0:
            found, following = await self._schedules.page(after=after, limit=min(left, _SLICE))
            for schedule in filter(_visible, found):
                shown = convert.schedule(schedule)
                size += shown.ByteSize()
                if size > _PAGE_BYTES and response.schedules:
                    response.next_page_token = pages.encode(after, "schedules")
                    return response
                response.schedules.append(shown)
                after = schedule.id
            left -= _SLICE
            after = following
            if not following:
                return response
        response.next_page_token = pages.encode(after, "schedules")
        return response

    @rpc
    async def UpdateSchedule(
        self, request: pb.UpdateScheduleRequest, context: Any
    ) -> pb.UpdateScheduleResponse:
        request_name(request.request_id)
        id = _checked("schedule.schedule_id", request.schedule.schedule_id)
        wanted = await self._read(request.schedule, id, _now_ms())

        def change(found: Schedule) -> Schedule:
            same = replace(wanted.recurrence, anchor_ms=found.recurrence.anchor_ms) == found.recurrence
            if same and not wanted.paused and not found.paused:
                # What it does is changed, not when.
                return replace(
                    wanted,
                    version=found.version,
                    next_run_ms=found.next_run_ms,
                    recurrence=found.recurrence,
                )
            return replace(wanted, version=found.version)

        stored = await self._changed(id, change)
        await self._audit.record("schedule.update", id, **_told(wanted))
        return pb.UpdateScheduleResponse(schedule=convert.schedule(stored))

    @rpc
    async def PauseSchedule(self, request: pb.PauseScheduleRequest, context: Any) -> pb.PauseScheduleResponse:
        id = _checked("schedule_id", request.schedule_id)
        stored = await self._changed(id, lambda found: replace(found, paused=True, next_run_ms=0))
        await self._audit.record("schedule.pause", id)
        return pb.PauseScheduleResponse(schedule=convert.schedule(stored))

    @rpc
    async def ResumeSchedule(
        self, request: pb.ResumeScheduleRequest, context: Any
    ) -> pb.ResumeScheduleResponse:
        id = _checked("schedule_id", request.schedule_id)

        def resumed(found: Schedule) -> Schedule:
            if not found.paused:
                return found
            # Whoever made it may have known zones that are not known here.
            _check(found.recurrence)
            return replace(found, paused=False, next_run_ms=found.recurrence.next_after(_now_ms()))

        stored = await self._changed(id, resumed)
        await self._audit.record("schedule.resume", id)
        return pb.ResumeScheduleResponse(schedule=convert.schedule(stored))

    @rpc
    async def DeleteSchedule(
        self, request: pb.DeleteScheduleRequest, context: Any
    ) -> pb.DeleteScheduleResponse:
        id = _checked("schedule_id", request.schedule_id)
        await self._schedules.delete(id)
        await self._audit.record("schedule.delete", id)
        return pb.DeleteScheduleResponse()

    async def _changed(self, id: str, change: Any) -> Schedule:
        for _ in range(_TRIES):
            stored = await self._schedules.change(change(await self._schedules.get(id)))
            if stored is not None:
                return stored
        raise Overloaded(f"schedule {id} is being changed all the time", 1)

    async def _read(self, given: pb.Schedule, id: str, now_ms: int) -> Schedule:
        """Raises InvalidInput, PermissionDenied, QueueUnavailable."""
        _checked("schedule.schedule_id", id)
        try:
            missed = MissedRuns(given.missed_run_policy or MissedRuns.ONCE)
        except ValueError:
            raise InvalidInput("schedule.missed_run_policy", f"{given.missed_run_policy} is none") from None
        recurrence = _recurrence(given, now_ms)
        fan_out, task, arguments = None, None, {}
        match given.WhichOneof("action"):
            case "fan_out":
                fan_out = await self._fan_out(given.fan_out, id)
                if given.HasField("task_arguments"):
                    raise InvalidInput("schedule.task_arguments", "are for a task")
            case "task":
                try:
                    task = Task(given.task)
                except ValueError:
                    raise InvalidInput("schedule.task", f"{given.task} is not a task") from None
                arguments = _arguments(task, _plain(given.task_arguments))
            case _:
                raise InvalidInput("schedule.action", "is required: fan_out or task")
        return Schedule(
            id,
            recurrence,
            fan_out,
            task,
            arguments,
            plain_text("schedule.description", given.description, _MAX_DESCRIPTION),
            missed,
            given.paused,
            next_run_ms=0 if given.paused else recurrence.next_after(now_ms),
        )

    async def _fan_out(self, given: pb.ScheduledFanOut, id: str) -> FanOutTemplate:
        # Who may only operate must not be able to speak for an actor.
        if Scope.DELIVER not in caller().scopes:
            raise PermissionDenied("a schedule that sends activities needs the scope deliver")
        if not given.inboxes:
            raise InvalidInput("schedule.fan_out.inboxes", "is empty")
        most = self._limits.max_fan_out(caller())
        if len(given.inboxes) > most:
            raise InvalidInput(
                "schedule.fan_out.inboxes", f"has {len(given.inboxes)} inboxes; {most} are allowed"
            )
        chosen = priority("schedule.fan_out.priority", given.priority)
        try:
            given.activity.decode()
        except UnicodeDecodeError:
            raise InvalidInput("schedule.fan_out.activity", "is not UTF-8") from None
        template = FanOutTemplate(given.activity, tuple(given.inboxes), given.key_id, chosen)
        # As large as what any run sends: workers do not know the caller's limits.
        one, other = (template.filled(run_name(id, day), day) for day in (86_400_000, 2 * 86_400_000))
        ids = [await self._intake.scheduled(body, given.key_id) for body in (one, other)]
        if ids[0] == ids[1]:
            raise InvalidInput(
                "schedule.fan_out.activity",
                "has neither {run_id} nor {time} in its id: every run would be a duplicate",
            )
        _, rejected, _ = await self._intake.places(given.inboxes)
        if rejected:
            first = rejected[0]
            raise InvalidInput(f"schedule.fan_out.{first.error.field}", first.error.problem)
        return template


def _visible(schedule: Schedule) -> bool:
    """Whether the caller may see it: what is sent for an instance is nobody else's to read."""
    origins = allowed_origins()
    return origins is None or schedule.fan_out is None or origin_of(schedule.fan_out.key_id) in origins


def _now_ms() -> int:
    return int(time.time() * 1000)


def _new_id(request_id: str) -> str:
    if not request_id:
        return secrets.token_hex(6)
    return hashlib.blake2b(f"{caller().name} {request_id}".encode(), digest_size=6).hexdigest()


def _checked(field: str, id: str) -> str:
    if not _ID.fullmatch(id):
        raise InvalidInput(field, "must be 1 to 64 of a-z, 0-9, - and _, beginning with a letter or digit")
    return id


def _recurrence(given: pb.Schedule, now_ms: int) -> Recurrence:
    zone = given.time_zone or "UTC"
    match given.WhichOneof("recurrence"):
        case "cron":
            if len(given.cron) > 256:
                raise InvalidInput("schedule.cron", "is too long")
            found = Recurrence(given.cron, zone)
        case "interval":
            ms = duration_ms(given, "interval", "schedule.interval")
            if not SHORTEST_MS <= ms <= LONGEST_MS:
                raise InvalidInput("schedule.interval", "must be between a second and 366 days")
            found = Recurrence(time_zone=zone, interval_ms=ms, anchor_ms=now_ms // 1000 * 1000)
        case _:
            raise InvalidInput("schedule.recurrence", "is required: cron or interval")
    _check(found)
    return found


def _check(recurrence: Recurrence) -> None:
    """Raises InvalidInput."""
    field = "schedule.time_zone"
    try:
        recurrence.zone()
        field = "schedule.cron"
        recurrence.check()
    except ValueError as error:
        raise InvalidInput(field, str(error)) from None


def _plain(given: Any) -> dict[str, Any]:
    """Of a Struct. Raises InvalidInput."""
    try:
        return MessageToDict(given)
    except ValueError:
        raise InvalidInput("schedule.task_arguments", "have a number that JSON does not know") from None


def _arguments(task: Task, given: dict[str, Any]) -> dict[str, Any]:
    """Raises InvalidInput."""
    known, taken = TASK_ARGUMENTS[task], {}
    for name, value in given.items():
        field = f"schedule.task_arguments.{name}"
        kind = known.get(name)
        if kind is None:
            raise InvalidInput(field, f"is not known; {task.name} takes {', '.join(known) or 'none'}")
        if kind is bool:
            if not isinstance(value, bool):
                raise InvalidInput(field, "must be true or false")
        elif kind is int:
            number = isinstance(value, float) and value.is_integer() and 0 <= value < 2**53
            if not number:
                raise InvalidInput(field, "must be a whole number, not negative")
            value = int(value)
        elif not isinstance(value, str):
            raise InvalidInput(field, "must be text")
        else:
            assert isinstance(kind, int)
            value = plain_text(field, value, kind)
        taken[name] = value
    if task is Task.DEAD_LETTER_REPLAY:
        if "host" in taken:
            taken["host"] = host_name("schedule.task_arguments.host", taken["host"])
        http_status("schedule.task_arguments.status", taken.get("status", 0))
        if "reason" in taken and taken["reason"] not in Reason.__members__:
            raise InvalidInput("schedule.task_arguments.reason", "is not a reason, such as UNAVAILABLE")
        ours = {name: value for name, value in taken.items() if name not in ("limit", "max_age_seconds")}
        DeadLetterFilter.from_json(ours)
    return taken


def _told(schedule: Schedule) -> dict[str, Any]:
    r = schedule.recurrence
    what = schedule.task.name.lower() if schedule.task else f"fan_out to {len(schedule.fan_out.inboxes)}"  # type: ignore[union-attr]
    return {"when": r.cron or f"every {r.interval_ms / 1000:g} s", "what": what, "paused": schedule.paused}
