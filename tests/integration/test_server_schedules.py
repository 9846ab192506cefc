"""What operators may say of schedules, through the real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from servers.front import Front, front
from servers.queue import Queue

from fedsvc.config import Settings
from fedsvc.domain.schedule import Recurrence, Schedule, Task
from fedsvc.queue.schedules import Schedules
from fedsvc.server.caller import Caller, Scope
from fedsvc.server.tokens import entry_text, new_token
from fedsvc.v1 import key_service_pb2 as keys_pb
from fedsvc.v1 import operations_service_pb2 as pb

TOKENS = {name: new_token() for name in ("all", "operator", "one", "other", "little", "much")}
KEY_ID = "https://me.example/u/ada#main-key"
TEMPLATE = (
    b'{"id":"https://me.example/weekly/{run_id}","type":"Create","actor":"https://me.example/u/ada","object":'
    b'{"id":"https://me.example/notes/{run_id}","type":"Note","published":"{time}",'
    b'"attributedTo":"https://me.example/u/ada"}}'
)
INBOXES = ["https://a.example/inbox", "https://b.example/inbox"]


@pytest.fixture
async def server(environment: dict[str, str], rsa_pem: str) -> AsyncIterator[Front]:
    entries = (
        entry_text(Caller("all"), TOKENS["all"]),
        entry_text(Caller("little"), TOKENS["little"]),
        entry_text(Caller("much"), TOKENS["much"]),
        entry_text(Caller("operator", frozenset({Scope.OPERATE})), TOKENS["operator"]),
        entry_text(Caller("one", origins=frozenset({"me.example"})), TOKENS["one"]),
        entry_text(Caller("other", origins=frozenset({"other.example"})), TOKENS["other"]),
    )
    more = {
        "FEDSVC_MAX_FAN_OUT": "5",
        "FEDSVC_TOKENS": " ".join(entries),
        "FEDSVC_LIMITS": "little:fan_out=1:bytes=400 much:fan_out=6 @me.example:bytes=2000",
    }
    async with front(Settings.from_environment(environment | more)) as running:
        metadata = (("authorization", f"Bearer {TOKENS['all']}"),)
        put = keys_pb.PutKeyRequest(key_id=KEY_ID, private_key_pem=rsa_pem)
        await running.keys.PutKey(put, metadata=metadata)
        yield running


async def call(server: Front, method: str, who: str = "all", **fields: Any) -> Any:
    request = getattr(pb, f"{method}Request")(**fields)
    metadata = (("authorization", f"Bearer {TOKENS[who]}"),)
    return await getattr(server.operations, method)(request, metadata=metadata, timeout=20)


def weekly(**changed: Any) -> dict[str, Any]:
    fan_out = {"activity": TEMPLATE, "inboxes": INBOXES, "key_id": KEY_ID}
    return {"schedule_id": "weekly", "cron": "0 9 * * MON", "fan_out": fan_out} | changed


async def test_a_schedule_from_its_creation_to_its_end(server: Front) -> None:
    made = (await call(server, "CreateSchedule", schedule=weekly(time_zone="Europe/Berlin"))).schedule
    assert (made.cron, made.time_zone, made.paused) == ("0 9 * * MON", "Europe/Berlin", False)
    assert made.fan_out == pb.ScheduledFanOut(activity=TEMPLATE, inboxes=INBOXES, key_id=KEY_ID)
    assert made.missed_run_policy == pb.MISSED_RUN_POLICY_ONCE
    assert made.next_run_time.seconds % 60 == 0
    assert (await call(server, "GetSchedule", schedule_id="weekly")).schedule == made

    paused = (await call(server, "PauseSchedule", schedule_id="weekly")).schedule
    assert paused.paused
    assert not paused.HasField("next_run_time")
    resumed = (await call(server, "ResumeSchedule", schedule_id="weekly")).schedule
    assert resumed == made
    task = weekly(task=pb.MAINTENANCE_TASK_CLEANUP, description="tidy", interval={"seconds": 90})
    del task["fan_out"], task["cron"]
    task["task_arguments"] = {"aggressive": True}
    changed = (await call(server, "UpdateSchedule", schedule=task)).schedule
    assert (changed.task, changed.description, changed.interval.seconds) == (4, "tidy", 90)
    assert changed.task_arguments["aggressive"] is True
    again = (await call(server, "UpdateSchedule", schedule=task | {"description": "tidier"})).schedule
    assert again.next_run_time == changed.next_run_time, "only what it does was changed"

    await call(server, "CreateSchedule", schedule=task | {"schedule_id": "b"})
    page = await call(server, "ListSchedules", page_size=1)
    assert [s.schedule_id for s in page.schedules] == ["b"]
    page = await call(server, "ListSchedules", page_size=1, page_token=page.next_page_token)
    assert ([s.schedule_id for s in page.schedules], page.next_page_token) == (["weekly"], "")
    await call(server, "DeleteSchedule", schedule_id="b")
    with pytest.raises(grpc.aio.AioRpcError, match="there is no schedule b"):
        await call(server, "GetSchedule", schedule_id="b")
    async with asyncio.timeout(20):
        actions: list[str] = []
        while len(actions) < 8:
            actions = [e.action for e in (await call(server, "ListAuditEvents")).audit_events]
    assert sorted(actions) == [
        "key.put", "schedule.create", "schedule.create", "schedule.delete", "schedule.pause",
        "schedule.resume", "schedule.update", "schedule.update",
    ]  # fmt: skip


async def test_a_key_that_a_schedule_signs_with_is_deleted_only_by_who_says_so(server: Front) -> None:
    def delete(**how: Any) -> Any:
        request = keys_pb.DeleteKeyRequest(key_id=KEY_ID, **how)
        return server.keys.DeleteKey(request, metadata=(("authorization", f"Bearer {TOKENS['one']}"),))

    await call(server, "CreateSchedule", schedule=weekly(paused=True))
    for n in range(4):
        await call(server, "CreateSchedule", schedule=weekly(schedule_id=f"more-{n}"))
    with pytest.raises(grpc.aio.AioRpcError, match="more-0, more-1, more-2 and 2 more: schedules") as refused:
        await delete()
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    for n in range(4):
        await call(server, "DeleteSchedule", schedule_id=f"more-{n}")
    with pytest.raises(grpc.aio.AioRpcError, match="weekly: schedules"):
        await delete()
    await delete(when_unused=True)
    with pytest.raises(grpc.aio.AioRpcError, match="there is no key"):
        await delete()


async def test_a_key_that_no_schedule_signs_with_any_more_is_deleted(server: Front) -> None:
    await call(server, "CreateSchedule", schedule=weekly())
    other = weekly(task=pb.MAINTENANCE_TASK_CLEANUP)
    del other["fan_out"]
    await call(server, "UpdateSchedule", schedule=other)
    metadata = (("authorization", f"Bearer {TOKENS['all']}"),)
    await server.keys.DeleteKey(keys_pb.DeleteKeyRequest(key_id=KEY_ID), metadata=metadata)


async def test_a_request_id_makes_one_schedule(server: Front) -> None:
    asked = weekly()
    del asked["schedule_id"]
    first = (await call(server, "CreateSchedule", schedule=asked, request_id="r")).schedule
    again = (await call(server, "CreateSchedule", schedule=asked, request_id="r")).schedule
    other = (await call(server, "CreateSchedule", schedule=asked)).schedule
    assert first == again
    assert first.schedule_id != other.schedule_id
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call(server, "CreateSchedule", schedule=weekly(schedule_id=first.schedule_id), request_id="s")
    assert refused.value.code() is grpc.StatusCode.ALREADY_EXISTS


async def test_a_schedule_is_within_the_limits_of_its_caller_and_origin(server: Front) -> None:
    await call(server, "CreateSchedule", "much", schedule=fanning(inboxes=INBOXES * 3))
    field = "schedule.fan_out"
    for who, asked, said in (
        ("little", fanning(), f"{field}.inboxes: has 2 inboxes; 1 are allowed"),
        # as long as it is with the name of a real run
        ("little", padded(b"{run_id}" * 6), f"{field}.activity: has 4.. bytes; 400 are allowed"),
        ("all", padded(b"x" * 1800), f"{field}.activity: has 2... bytes; 2000 are allowed for me.example"),
    ):
        with pytest.raises(grpc.aio.AioRpcError, match=said) as refused:
            await call(server, "CreateSchedule", who, schedule=asked)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    small = padded(b"") | {"schedule_id": "small"}
    await call(server, "CreateSchedule", "little", schedule=small)


def padded(summary: bytes) -> dict[str, Any]:
    """To one inbox."""
    return fanning(activity=TEMPLATE[:-1] + b',"summary":"%s"}' % summary, inboxes=INBOXES[:1])


async def test_who_may_only_operate_cannot_speak_for_an_actor(server: Front) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match="needs the scope deliver") as refused:
        await call(server, "CreateSchedule", "operator", schedule=weekly())
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    task = {"schedule_id": "t", "cron": "0 3 * * *", "task": pb.MAINTENANCE_TASK_ARCHIVE_PURGE}
    await call(server, "CreateSchedule", "operator", schedule=task)
    with pytest.raises(grpc.aio.AioRpcError, match="concerns all instances"):
        await call(server, "CreateSchedule", "one", schedule=task)


async def test_what_is_sent_for_an_instance_is_not_shown_to_another(server: Front) -> None:
    await call(server, "CreateSchedule", schedule=weekly())
    task = without("fan_out") | {"schedule_id": "tidy", "task": pb.MAINTENANCE_TASK_CLEANUP}
    await call(server, "CreateSchedule", schedule=task)
    for who, seen in (("all", ["tidy", "weekly"]), ("one", ["tidy", "weekly"]), ("other", ["tidy"])):
        assert [s.schedule_id for s in (await call(server, "ListSchedules", who)).schedules] == seen
    with pytest.raises(grpc.aio.AioRpcError, match="there is no schedule weekly") as refused:
        await call(server, "GetSchedule", "other", schedule_id="weekly")
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


def without(name: str) -> dict[str, Any]:
    asked = weekly()
    del asked[name]
    return asked


def fanning(**changed: Any) -> dict[str, Any]:
    asked = weekly()
    return asked | {"fan_out": asked["fan_out"] | changed}


def replaying(**arguments: Any) -> dict[str, Any]:
    return without("fan_out") | {"task": pb.MAINTENANCE_TASK_DEAD_LETTER_REPLAY, "task_arguments": arguments}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (weekly(schedule_id="Weekly"), r"schedule.schedule_id: must be 1 to 64 of a-z"),
        (without("cron"), "schedule.recurrence: is required"),
        (without("fan_out"), "schedule.action: is required"),
        (weekly(cron=""), "schedule.cron: has not five fields"),
        (weekly(cron="0 9 * *"), "schedule.cron: has not five fields"),
        (weekly(cron="0 99 * * *"), "schedule.cron: bad hour"),
        (weekly(cron="0 0 30 2 *"), "schedule.cron: bad day-of-month"),
        (weekly(time_zone="Mars/Olympus"), "schedule.time_zone: 'Mars/Olympus' is not a time zone"),
        (weekly(time_zone="../etc/passwd"), "schedule.time_zone: "),
        (without("cron") | {"interval": {"nanos": 5_000_000}}, "schedule.interval: must be between a second"),
        (without("cron") | {"interval": {"seconds": 10**9}}, "schedule.interval: must be between a second"),
        (weekly(description="x" * 513), "schedule.description: has 513 characters"),
        (weekly(missed_run_policy=7), "schedule.missed_run_policy: 7 is none"),
        (fanning(inboxes=[]), "schedule.fan_out.inboxes: is empty"),
        (fanning(inboxes=INBOXES * 3), "schedule.fan_out.inboxes: has 6 inboxes; 5 are allowed"),
        (fanning(inboxes=["https://a.example/", "ftp://b"]), r"schedule.fan_out.inboxes\[1\]: "),
        (fanning(key_id=""), "schedule.fan_out.key_id: is required"),
        (fanning(key_id="https://me.example/u/eve#k"), "schedule.fan_out.key_id: no key of this id"),
        (fanning(activity=b"{"), "schedule.fan_out.activity"),
        (fanning(activity=b"\xff"), "schedule.fan_out.activity: is not UTF-8"),
        (fanning(activity=TEMPLATE.replace(b"{run_id}", b"1")), "has neither {run_id} nor {time} in its id"),
        (fanning(priority=9), "schedule.fan_out.priority: 9 is not a priority"),
        (weekly(task_arguments={"a": 1}), "schedule.task_arguments: are for a task"),
        (without("fan_out") | {"task": 99}, "schedule.task: 99 is not a task"),
        (replaying(whim=1), r"schedule.task_arguments.whim: is not known; DEAD_LETTER_REPLAY takes host"),
        (replaying(limit=1.5), "schedule.task_arguments.limit: must be a whole number"),
        (replaying(limit=float("inf")), "schedule.task_arguments: have a number that JSON does not know"),
        (replaying(limit=float("nan")), "schedule.task_arguments: have a number that JSON does not know"),
        (replaying(limit="5"), "schedule.task_arguments.limit: must be a whole number"),
        (replaying(reason="WHIM"), "schedule.task_arguments.reason: is not a reason"),
        (replaying(status=7), "schedule.task_arguments.status: 7 is not a status of HTTP"),
        (replaying(host="a b"), "schedule.task_arguments.host: "),
        (replaying(actor=7), "schedule.task_arguments.actor: must be text"),
    ],
)
async def test_what_cannot_be_scheduled_is_refused_by_name(
    server: Front, asked: dict[str, Any], said: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match=said) as refused:
        await call(server, "CreateSchedule", schedule=asked)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert list((await call(server, "ListSchedules")).schedules) == []


@pytest.mark.parametrize(
    ("recurrence", "said"),
    [
        (
            Recurrence("0 4 * * *", "Mars/Phobos"),
            "schedule.time_zone: 'Mars/Phobos' is not a time zone that is",
        ),
        (Recurrence("0 4 * * SOMEDAY"), "schedule.cron: "),
    ],
    ids=["zone", "cron"],
)
async def test_one_that_cannot_be_read_here_is_shown_and_not_resumed(
    server: Front, queue: Queue, recurrence: Recurrence, said: str
) -> None:
    """A server of another version, or with other zones, has made it."""
    made = Schedule("weekly", recurrence, task=Task.CLEANUP, next_run_ms=1)
    await Schedules(queue.link, queue.keys).create(made)
    paused = (await call(server, "PauseSchedule", schedule_id="weekly")).schedule
    with pytest.raises(grpc.aio.AioRpcError, match=said) as refused:
        await call(server, "ResumeSchedule", schedule_id="weekly")
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (await call(server, "GetSchedule", schedule_id="weekly")).schedule == paused
    assert (await call(server, "UpdateSchedule", schedule=weekly())).schedule.cron == weekly()["cron"]
