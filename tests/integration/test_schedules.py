"""Schedules: each run once, whoever dies, and what operators may say of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import grpc
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servers.front import Front, front
from servers.queue import Queue, open_queue
from servers.valkey import ValkeyServer

from fedsvc.config import Settings
from fedsvc.domain.schedule import MissedRuns, Recurrence, Schedule, Task
from fedsvc.errors import AlreadyExists, InvalidKey, NotFound, Overloaded, QueueUnavailable
from fedsvc.queue.schedules import Schedules
from fedsvc.server.caller import Caller, Scope
from fedsvc.server.tokens import entry_text, new_token
from fedsvc.v1 import key_service_pb2 as keys_pb
from fedsvc.v1 import operations_service_pb2 as pb
from fedsvc.worker.scheduler import Scheduler

MINUTE_MS = 60_000


class Site:
    """Several workers on one queue, by a clock of our own; `ran` is what they have done."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self.schedules = Schedules(queue.link, queue.keys)
        self.now_ms = 1_800_000_000_000
        self.ran: list[tuple[str, int]] = []
        self.fails: list[Exception] = []

    def worker(self, name: str, **more: Any) -> Scheduler:
        async def carry_out(schedule: Schedule, time_ms: int) -> None:
            self.ran.append((schedule.id, time_ms))
            if self.fails:
                raise self.fails.pop(0)

        return Scheduler(self.schedules, more.pop("carry_out", carry_out), lambda: self.now_ms, name, **more)

    async def make(self, id: str, interval_ms: int = MINUTE_MS, **more: Any) -> Schedule:
        recurrence = Recurrence(interval_ms=interval_ms, anchor_ms=self.now_ms)
        schedule = Schedule(
            id, recurrence, task=Task.CLEANUP, next_run_ms=recurrence.next_after(self.now_ms), **more
        )
        return await self.schedules.create(schedule)

    async def look(self, worker: Scheduler) -> None:
        await worker.look()
        await worker.finished()

    async def leases_end(self, id: str) -> None:
        """Of whoever was killed: what is in hand is in nobody's."""
        prefix = self.queue.keys.schedules
        await self.queue.link.call("HSET", f"{prefix}:id:{id}", "until", 0)
        await self.queue.link.call("ZADD", f"{prefix}:due", 0, id)


@pytest.fixture
async def site(valkey: ValkeyServer, namespace: str) -> AsyncIterator[Site]:
    async with open_queue(valkey.url, namespace) as queue:
        yield Site(queue)


async def test_a_run_comes_when_it_is_due_and_once_for_all_workers(site: Site) -> None:
    made = await site.make("a")
    workers = [site.worker(name) for name in "xyz"]
    for worker in workers:
        await site.look(worker)
    assert site.ran == []
    site.now_ms = made.next_run_ms
    await asyncio.gather(*(site.look(worker) for worker in workers))
    assert site.ran == [("a", made.next_run_ms)]
    seen = await site.schedules.get("a")
    assert (seen.last_run_ms, seen.next_run_ms) == (made.next_run_ms, made.next_run_ms + MINUTE_MS)
    assert (seen.running_ms, seen.last_error) == (0, "")


async def test_a_run_that_its_worker_left_is_taken_up_as_the_same(site: Site) -> None:
    made = await site.make("a")
    begun, released = asyncio.Event(), asyncio.Event()

    async def long(schedule: Schedule, time_ms: int) -> None:
        begun.set()
        await released.wait()

    dying = site.worker("x", carry_out=long)
    site.now_ms = made.next_run_ms
    await dying.look()
    await begun.wait()
    for task in dying._runs.values():
        task.cancel()
    await dying.finished()
    site.now_ms += 3 * MINUTE_MS
    other = site.worker("y")
    await site.look(other)
    assert site.ran == [], "it is still in the hands of the first"
    await site.leases_end("a")
    await site.look(other)
    assert site.ran == [("a", made.next_run_ms)], "the run that was begun goes first"
    await site.look(other)
    assert site.ran[1:] == [("a", made.next_run_ms + 3 * MINUTE_MS)]


async def test_a_run_that_takes_long_stays_its_worker_s(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scheduler, "KEEP_EVERY", 0.01)
    made = await site.make("a")
    kept = asyncio.Event()
    released = asyncio.Event()

    async def long(schedule: Schedule, time_ms: int) -> None:
        site.ran.append((schedule.id, time_ms))
        await released.wait()

    keep = site.schedules.keep

    async def noted(*arguments: Any) -> bool:
        done = await keep(*arguments)
        kept.set()
        return done

    monkeypatch.setattr(site.schedules, "keep", noted)
    worker = site.worker("x", carry_out=long)
    site.now_ms = made.next_run_ms
    await worker.look()
    await kept.wait()
    site.now_ms += 10 * MINUTE_MS
    await worker.look()
    await site.look(site.worker("y"))
    assert len(site.ran) == 1, "no run begins while the former goes on"
    released.set()
    await worker.finished()
    await site.look(worker)
    assert site.ran == [("a", made.next_run_ms), ("a", made.next_run_ms + 10 * MINUTE_MS)]


@pytest.mark.parametrize("policy", MissedRuns)
async def test_missed_runs_are_made_up_for_once_or_left_out(site: Site, policy: MissedRuns) -> None:
    made = await site.make("a", 10 * MINUTE_MS, missed=policy)
    worker = site.worker("x")
    site.now_ms = made.next_run_ms + 55 * MINUTE_MS
    await site.look(worker)
    await site.look(worker)
    seen = await site.schedules.get("a")
    assert seen.next_run_ms == made.next_run_ms + 60 * MINUTE_MS
    if policy is MissedRuns.ONCE:
        assert site.ran == [("a", made.next_run_ms + 50 * MINUTE_MS)]
        assert seen.last_error == ""
    else:
        assert site.ran == []
        assert "left out: nobody was there" in seen.last_error
    site.now_ms = seen.next_run_ms + 30_000
    await site.look(worker)
    assert site.ran[-1] == ("a", seen.next_run_ms), "half a minute late is not missed"


async def test_what_is_late_by_an_hour_that_comes_twice_runs_once(site: Site) -> None:
    """At 02:59 summer time everybody was busy, and a minute later it is 02:00 again."""
    recurrence = Recurrence("59 2 * * *", "Europe/Berlin")
    due = 1_792_889_940_000  # 2026-10-25 00:59 in UTC
    made = Schedule("a", recurrence, task=Task.CLEANUP, next_run_ms=due)
    await site.schedules.create(made)
    worker = site.worker("x")
    for second in range(61, 66):
        site.now_ms = due + second * 1000
        await site.look(worker)
    assert site.ran == [("a", due)]


async def test_what_fails_is_told_and_the_next_run_comes(site: Site) -> None:
    made = await site.make("a")
    worker = site.worker("x")
    site.fails = [InvalidKey("fan_out.key_id", "is gone"), ZeroDivisionError("secret")]
    for error in ("fan_out.key_id: is gone", "it failed; see the worker's log", ""):
        site.now_ms += MINUTE_MS
        await site.look(worker)
        assert (await site.schedules.get("a")).last_error == error
    assert len(site.ran) == 3
    assert site.ran[0] == ("a", made.next_run_ms)


async def test_redis_going_away_in_a_run_is_no_end_of_it(site: Site) -> None:
    made = await site.make("a")
    worker = site.worker("x")
    site.fails = [QueueUnavailable("away")]
    site.now_ms = made.next_run_ms
    await site.look(worker)
    assert (await site.schedules.get("a")).running_ms == made.next_run_ms
    await site.leases_end("a")
    await site.look(worker)
    assert site.ran == [("a", made.next_run_ms)] * 2
    assert (await site.schedules.get("a")).running_ms == 0


async def test_one_that_cannot_be_read_keeps_no_other_from_running(site: Site) -> None:
    """As a later version may write it, while some workers are not of that version yet."""
    for id in ("a", "b"):
        made = await site.make(id)
    name = f"{site.queue.keys.schedules}:id:a"
    definition = orjson.loads(await site.queue.link.call("HGET", name, "definition"))
    await site.queue.link.call("HSET", name, "definition", orjson.dumps(definition | {"task": 99}))
    site.now_ms = made.next_run_ms
    await site.look(site.worker("x"))
    assert site.ran == [("b", made.next_run_ms)]
    assert [each.id for each in (await site.schedules.page(after="", limit=10))[0]] == ["b"]


async def test_while_redis_is_full_nothing_begins(site: Site) -> None:
    made = await site.make("a")
    full = True
    worker = site.worker("x", full=lambda: full)
    site.now_ms = made.next_run_ms
    await site.look(worker)
    assert site.ran == []
    full = False
    await site.look(worker)
    assert len(site.ran) == 1


async def test_paused_changed_and_deleted_ones_do_not_run(site: Site) -> None:
    for name in ("paused", "changed", "deleted"):
        await site.make(name)
    paused = await site.schedules.get("paused")
    assert await site.schedules.change(replace(paused, paused=True, next_run_ms=0))
    stale = await site.schedules.get("changed")
    later = stale.next_run_ms + 5 * MINUTE_MS
    assert await site.schedules.change(replace(stale, next_run_ms=later))
    assert await site.schedules.change(stale) is None, "it has been changed since"
    await site.schedules.delete("deleted")
    site.now_ms += MINUTE_MS
    await site.look(site.worker("x"))
    assert site.ran == []
    # Who looked before it was changed has no run either.
    assert not await site.schedules.begin(stale, "x", 1000, stale.next_run_ms, later)
    for gone in (site.schedules.get("deleted"), site.schedules.delete("deleted")):
        with pytest.raises(NotFound):
            await gone


async def test_one_that_is_deleted_in_its_run_stays_deleted(site: Site) -> None:
    made = await site.make("a")
    assert await site.schedules.begin(made, "x", 1000, made.next_run_ms, made.next_run_ms + MINUTE_MS)
    await site.schedules.delete("a")
    assert not await site.schedules.end(made, "x", made.next_run_ms)
    assert not await site.schedules.keep(made, "x", 1000, made.next_run_ms)
    assert await site.schedules.page(after="", limit=10) == ([], "")
    assert await site.queue.link.call("EXISTS", f"{site.queue.keys.schedules}:id:a") == 0


async def test_there_are_no_more_than_may_be(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Schedules, "MOST", 2)
    await site.make("a")
    with pytest.raises(AlreadyExists):
        await site.make("a")
    await site.make("b")
    with pytest.raises(Overloaded):
        await site.make("c")


Steps = st.lists(
    st.tuples(st.sampled_from(["x", "y", "z"]), st.sampled_from(["look", "die", "wait", "lease"])),
    max_size=30,
)


@given(steps=Steps, interval_s=st.integers(1, 90))
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_happens_each_run_ends_once_and_in_order(
    valkey: ValkeyServer, steps: list[tuple[str, str]], interval_s: int
) -> None:
    async def check() -> None:
        async with open_queue(valkey.url, f"s{abs(hash((tuple(steps), interval_s)))}") as queue:
            site = Site(queue)
            ended: list[int] = []
            await site.make("a", interval_s * 1000)

            async def dies(schedule: Schedule, time_ms: int) -> None:
                raise QueueUnavailable("as if it had been killed")

            async def works(schedule: Schedule, time_ms: int) -> None:
                ended.append(time_ms)

            for name, what in steps:
                if what == "wait":
                    site.now_ms += 45_000
                elif what == "lease":
                    if (await site.schedules.get("a")).running_ms:
                        await site.leases_end("a")
                else:
                    await site.look(site.worker(name, carry_out=works if what == "look" else dies))
            assert ended == sorted(set(ended))
            seen = await site.schedules.get("a")
            assert seen.last_run_ms == (ended[-1] if ended else 0)
            await queue.empty()

    asyncio.run(check())


# Over gRPC

TOKENS = {"all": new_token(), "operator": new_token(), "one": new_token(), "other": new_token()}
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
        entry_text(Caller("operator", frozenset({Scope.OPERATE})), TOKENS["operator"]),
        entry_text(Caller("one", origins=frozenset({"me.example"})), TOKENS["one"]),
        entry_text(Caller("other", origins=frozenset({"other.example"})), TOKENS["other"]),
    )
    more = {"FEDSVC_MAX_FAN_OUT": "5", "FEDSVC_TOKENS": " ".join(entries)}
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
