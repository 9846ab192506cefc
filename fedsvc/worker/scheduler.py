"""Runs what is scheduled: each run once, by one worker of all."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Final

import structlog

from fedsvc.background import end
from fedsvc.domain.schedule import MissedRuns, Schedule
from fedsvc.errors import FedsvcError, QueueUnavailable
from fedsvc.queue.schedules import Schedules

log = structlog.get_logger(__name__)

#: carries out the run of this time (ms); what it raises is told as the schedule's last error. After a crash
#: it is asked to do the same again
CarryOut = Callable[[Schedule, int], Awaitable[None]]


class Scheduler:
    #: seconds between two looks at what is due
    EVERY: Final = 1.0
    #: runs that one worker has in hand at the same time
    AT_ONCE: Final = 8
    #: milliseconds for which a run is its worker's unless it says more
    LEASE_MS: Final = 30_000
    #: seconds between two times that it does
    KEEP_EVERY: Final = 10.0
    #: milliseconds after which a run counts as missed
    MISSED_MS: Final = 60_000

    def __init__(
        self,
        schedules: Schedules,
        carry_out: CarryOut,
        now_ms: Callable[[], int],
        name: str,
        full: Callable[[], bool] = lambda: False,
    ) -> None:
        """`now_ms`: Redis's clock, so that a worker whose own clock is ahead runs nothing early. `full`:
        whether Redis has no room for more; then all waits."""
        self._schedules = schedules
        self._carry_out = carry_out
        self._now_ms = now_ms
        self._name = name
        self._full = full
        self._runs: dict[str, asyncio.Task[None]] = {}
        #: schedules of which it cannot be told here when they run, and of which that was said
        self._told: set[str] = set()

    async def run(self) -> None:
        """Until cancelled; runs that are then on their way are taken up by others. Redis being away only
        delays it."""
        try:
            while True:
                with suppress(QueueUnavailable):
                    await self.look()
                await asyncio.sleep(self.EVERY)
        finally:
            await end(list(self._runs.values()))

    async def look(self) -> None:
        """Begin what is due. Raises QueueUnavailable."""
        if self._full():
            return
        now_ms = self._now_ms()
        async with aclosing(self._schedules.due(now_ms)) as due:
            async for schedule in due:
                if schedule.id in self._runs:
                    continue
                if len(self._runs) >= self.AT_ONCE:
                    return
                try:
                    time_ms = await self._taken(schedule, now_ms)
                except QueueUnavailable:
                    raise
                except Exception as error:  # noqa: BLE001  whoever wrote it
                    self._tell_unusable(schedule, error)
                    continue
                if time_ms:
                    task = asyncio.create_task(self._run(schedule, time_ms))
                    self._runs[schedule.id] = task
                    task.add_done_callback(lambda _, id=schedule.id: self._runs.pop(id, None))  # type: ignore[misc]

    async def finished(self) -> None:
        """Until nothing that was begun is on its way."""
        while self._runs:
            await asyncio.wait(list(self._runs.values()))

    def _tell_unusable(self, schedule: Schedule, error: Exception) -> None:
        if schedule.id not in self._told:
            self._told.add(schedule.id)
            log.error("schedule_unusable", schedule=schedule.id, problem=f"{type(error).__name__}: {error}")

    async def _taken(self, schedule: Schedule, now_ms: int) -> int:
        """Time of the run that is ours now; 0 for none."""
        if schedule.running_ms:
            kept = await self._schedules.keep(schedule, self._name, self.LEASE_MS, schedule.running_ms)
            return schedule.running_ms if kept else 0
        if not 0 < schedule.next_run_ms <= now_ms:
            return 0
        # What was missed in between is made up for by the latest.
        time_ms = schedule.recurrence.last_before(now_ms, schedule.next_run_ms)
        next_ms = schedule.recurrence.next_after(now_ms)
        if schedule.missed is MissedRuns.SKIP and now_ms - time_ms > self.MISSED_MS:
            why = f"left out: nobody was there at {schedule.run_id(time_ms).rpartition('-')[2]}"
            if await self._schedules.leave_out(schedule, time_ms, next_ms, why):
                log.warning("schedule_left_out", schedule=schedule.id, missed=why)
            return 0
        taken = await self._schedules.begin(schedule, self._name, self.LEASE_MS, time_ms, next_ms)
        return time_ms if taken else 0

    async def _run(self, schedule: Schedule, time_ms: int) -> None:
        run = schedule.run_id(time_ms)
        work = asyncio.ensure_future(self._carry_out(schedule, time_ms))
        error = ""
        try:
            while not work.done():
                await asyncio.wait([work], timeout=self.KEEP_EVERY)
                if not work.done() and not await self._schedules.keep(
                    schedule, self._name, self.LEASE_MS, time_ms
                ):
                    return  # deleted, or somebody else has it
            work.result()
        except QueueUnavailable as away:
            log.warning("schedule_waits", schedule=schedule.id, run=run, error=str(away))
            return  # whoever finds it after its lease takes it up
        except FedsvcError as failed:
            error = str(failed)
        except Exception:  # the schedule must go on, and its other runs
            log.exception("schedule_failed", schedule=schedule.id, run=run)
            error = "it failed; see the worker's log"
        finally:
            await end([work])
        with suppress(QueueUnavailable):
            if await self._schedules.end(schedule, self._name, time_ms, error):
                tell = log.warning if error else log.info
                tell("schedule_ran", schedule=schedule.id, run=run, error=error or None)
