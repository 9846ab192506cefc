"""Schedules: each run once, whoever dies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servers.queue import Queue, open_queue
from servers.valkey import ValkeyServer
from structlog.testing import capture_logs

from fedsvc.domain.schedule import MissedRuns, Recurrence, Schedule, Task
from fedsvc.errors import AlreadyExists, InvalidKey, NotFound, Overloaded, QueueUnavailable
from fedsvc.queue.schedules import Schedules
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


async def test_a_schedule_in_a_zone_that_a_worker_does_not_know_keeps_no_other_from_running(
    site: Site,
) -> None:
    made = await site.make("b")
    await site.schedules.create(
        Schedule("a", Recurrence("0 4 * * *", "Mars/Phobos"), task=Task.CLEANUP, next_run_ms=1)
    )
    worker = site.worker("x")
    site.now_ms = made.next_run_ms
    with capture_logs() as logs:
        await site.look(worker)
        await site.look(worker)
    assert site.ran == [("b", made.next_run_ms)]
    (told,) = [line for line in logs if line["event"] == "schedule_unusable"]
    assert (told["schedule"], "Mars/Phobos" in told["problem"]) == ("a", True)


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


async def test_a_run_that_is_taken_up_is_finished_as_it_began(site: Site) -> None:
    """Half of it may have been done before the schedule was changed."""
    did: list[Any] = []

    async def noted(schedule: Schedule, time_ms: int) -> None:
        did.append((time_ms, schedule.arguments))
        if site.fails:
            raise site.fails.pop(0)

    made = await site.make("a", arguments={"aggressive": True})
    worker = site.worker("x", carry_out=noted)
    site.fails = [QueueUnavailable("as if it had been killed")]
    site.now_ms = made.next_run_ms
    await site.look(worker)
    for arguments in ({"aggressive": False}, {}):
        found = await site.schedules.get("a")
        changed = await site.schedules.change(replace(found, arguments=arguments))
        assert changed is not None
        assert changed.arguments == arguments, "this is what is told of it"
    await site.leases_end("a")
    site.now_ms += MINUTE_MS
    await site.look(worker)
    await site.look(worker)
    first, second = made.next_run_ms, made.next_run_ms + MINUTE_MS
    assert did == [(first, {"aggressive": True}), (first, {"aggressive": True}), (second, {})]


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
    for error, logged in (
        ("fan_out.key_id: is gone", [("schedule_ran", "warning")]),
        ("it failed; see the worker's log", [("schedule_failed", "error"), ("schedule_ran", "warning")]),
        ("", [("schedule_ran", "info")]),
    ):
        site.now_ms += MINUTE_MS
        with capture_logs() as logs:
            await site.look(worker)
        assert (await site.schedules.get("a")).last_error == error
        assert [(line["event"], line["log_level"]) for line in logs] == logged
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


@pytest.mark.parametrize(
    "changes",
    [
        {"task": 99},
        {"fan_out": [{"id": "a"}, [], "k", None]},
        {"recurrence": ["0 4 * * SOMEDAY", "UTC", 0, 0]},
        {"recurrence": ["", "UTC", 0, 0]},
        {"recurrence": ["", "UTC", "1 month", 0]},
    ],
    ids=["task", "activity", "cron", "no interval", "interval"],
)
async def test_one_that_cannot_be_read_or_run_keeps_no_other_from_running(
    site: Site, changes: dict[str, Any]
) -> None:
    """As a later version may write it, while some workers are not of that version yet."""
    for id in ("a", "b"):
        made = await site.make(id)
    name = f"{site.queue.keys.schedules}:id:a"
    definition = orjson.loads(await site.queue.link.call("HGET", name, "definition"))
    await site.queue.link.call("HSET", name, "definition", orjson.dumps(definition | changes))
    site.now_ms = made.next_run_ms
    worker = site.worker("x")
    with capture_logs() as logs:
        await site.look(worker)
        await site.look(worker)
    assert site.ran == [("b", made.next_run_ms)]
    told = [line for line in logs if line["log_level"] in ("warning", "error")]
    assert [line["schedule"] for line in told] == ["a"], "once"


async def test_one_that_cannot_be_read_is_not_listed_nor_got_but_can_be_deleted(site: Site) -> None:
    for id in ("a", "b"):
        await site.make(id)
    await site.queue.link.call("HSET", f"{site.queue.keys.schedules}:id:a", "definition", "")
    assert [each.id for each in (await site.schedules.page(after="", limit=10))[0]] == ["b"]
    with pytest.raises(NotFound, match="no schedule a that this version can read"):
        await site.schedules.get("a")
    await site.schedules.delete("a")
    await site.make("a")


async def test_as_many_at_the_front_as_are_read_at_once_keep_no_other_from_running(site: Site) -> None:
    made = await site.make("last")
    for n in range(Schedules.BATCH):
        mars = Recurrence("0 4 * * *", "Mars/Phobos")
        await site.schedules.create(Schedule(f"mars-{n}", mars, task=Task.CLEANUP, next_run_ms=1))
    for n in range(Schedules.BATCH):
        await site.make(f"torn-{n}")
        await site.queue.link.call("HSET", f"{site.queue.keys.schedules}:id:torn-{n}", "definition", "")
        await site.queue.link.call("ZADD", f"{site.queue.keys.schedules}:due", 2, f"torn-{n}")
    site.now_ms = made.next_run_ms
    await site.look(site.worker("x"))
    assert site.ran == [("last", made.next_run_ms)]


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
    forgotten = replace(stale, id="deleted")
    for gone in (
        site.schedules.get("deleted"),
        site.schedules.delete("deleted"),
        site.schedules.change(forgotten),
    ):
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
