"""What is done again and again: when, and what. Pure; times are milliseconds since the epoch.

Cron expressions have five fields and are read in a time zone. Where a clock is put forward, what falls into
the hour that is left out runs right after it; where it is put back, what has a fixed time runs once.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import IntEnum
from typing import Any, Final
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from fedsvc.domain.dead_letters import LONGEST_ACTOR, LONGEST_TYPE
from fedsvc.domain.delivery import Priority

#: of an interval
SHORTEST_MS: Final = 1000
LONGEST_MS: Final = 366 * 86_400_000


class MissedRuns(IntEnum):
    """What happens to runs whose time came while nobody was there."""

    #: one run makes up for all
    ONCE = 1
    SKIP = 2


class Task(IntEnum):
    ARCHIVE_PURGE = 1
    HOST_PROBE = 2
    DEAD_LETTER_REPLAY = 3
    CLEANUP = 4


#: what a task takes: a whole number of at least 0, truth, or text of at most so many characters
TASK_ARGUMENTS: Final[dict[Task, dict[str, type | int]]] = {
    Task.ARCHIVE_PURGE: {},
    Task.HOST_PROBE: {"limit": int},
    Task.DEAD_LETTER_REPLAY: {
        "host": 255, "activity_type": LONGEST_TYPE, "actor": LONGEST_ACTOR, "reason": 64, "status": int,
        "limit": int, "max_age_seconds": int,
    },
    Task.CLEANUP: {"aggressive": bool},
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Recurrence:
    """Either `cron` or `interval_ms` is given."""

    cron: str = ""
    #: IANA's name of it
    time_zone: str = "UTC"
    interval_ms: int = 0
    #: intervals are counted from here
    anchor_ms: int = 0

    def check(self) -> None:
        """Raises ValueError, which says what is wrong with the cron expression, and what `zone` raises."""
        if not self.interval_ms:
            if len(self.cron.split()) != 5:
                raise ValueError("has not five fields: minute, hour, day of month, month, day of week")
            try:
                next(CronSim(self.cron, datetime.fromtimestamp(0, self.zone())))
            except CronSimError as error:
                raise ValueError(str(error).lower()) from None
            except StopIteration:
                raise ValueError("never comes") from None

    def next_after(self, time_ms: int) -> int:
        """The first time after this one."""
        if not self.cron:
            return self.anchor_ms + ((time_ms - self.anchor_ms) // self.interval_ms + 1) * self.interval_ms
        # CronSim knows whole minutes, and begins after the one that it is given. In an hour that comes twice
        # it goes by what the clock shows: what it finds first may have been already.
        times = CronSim(self.cron, datetime.fromtimestamp(time_ms // 1000, self.zone()))
        return next(at_ms for found in times if (at_ms := int(found.timestamp()) * 1000) > time_ms)

    def last_before(self, time_ms: int, first_ms: int) -> int:
        """The last time at or before `time_ms`, from `first_ms` on, which is one itself."""
        if not self.cron:
            return self.anchor_ms + (time_ms - self.anchor_ms) // self.interval_ms * self.interval_ms
        found = first_ms
        # By bounded steps backwards: going forwards through a year of minutes would take seconds.
        at = datetime.fromtimestamp(time_ms // 1000 + 60, self.zone())
        if at.fold:  # an hour that comes twice: what the clock will show in a while has been before
            at = datetime.fromtimestamp(time_ms // 1000 + 7260, self.zone())
        for earlier in CronSim(self.cron, at, reverse=True):
            at_ms = int(earlier.timestamp()) * 1000
            if at_ms <= time_ms:
                return max(found, at_ms)
        return found

    def zone(self) -> ZoneInfo:
        """Raises ValueError if it is not known here."""
        try:
            return ZoneInfo(self.time_zone)
        except (ValueError, OSError, KeyError):
            raise ValueError(f"{self.time_zone[:64]!r} is not a time zone that is known here") from None


@dataclass(frozen=True, slots=True)
class FanOutTemplate:
    """`{run_id}` and `{time}` in the activity are replaced for each run."""

    activity: bytes
    inboxes: tuple[str, ...]
    #: of a registered key
    key_id: str
    #: None: as its type has it
    priority: Priority | None = None

    def filled(self, run_id: str, time_ms: int) -> bytes:
        stamp = datetime.fromtimestamp(time_ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return self.activity.replace(b"{run_id}", run_id.encode()).replace(b"{time}", stamp.encode())


@dataclass(frozen=True, slots=True)
class Schedule:
    id: str
    recurrence: Recurrence
    #: one of these
    fan_out: FanOutTemplate | None = None
    task: Task | None = None
    #: of the task
    arguments: dict[str, Any] = field(default_factory=dict)
    description: str = ""
    missed: MissedRuns = MissedRuns.ONCE
    paused: bool = False
    #: 0 for never
    last_run_ms: int = 0
    #: 0 while paused
    next_run_ms: int = 0
    last_error: str = ""
    #: counts changes of what is above
    version: int = 0
    #: the run that somebody has in hand, or had; 0 for none
    running_ms: int = 0

    def run_id(self, time_ms: int) -> str:
        """Names a run: the same for all who ever try it."""
        return run_name(self.id, time_ms)


def run_name(schedule_id: str, time_ms: int) -> str:
    """Of the run of a schedule at a time; all of a schedule's are of one length."""
    return f"{schedule_id}-{datetime.fromtimestamp(time_ms // 1000, UTC).strftime('%Y%m%dT%H%M%SZ')}"


def definition_as_json(schedule: Schedule) -> str:
    """What was asked for, without what came of it."""
    r, f = schedule.recurrence, schedule.fan_out
    return json.dumps(
        {
            "description": schedule.description,
            "recurrence": [r.cron, r.time_zone, r.interval_ms, r.anchor_ms],
            "fan_out": f and [f.activity.decode(), list(f.inboxes), f.key_id, f.priority],
            "task": schedule.task,
            "arguments": schedule.arguments,
            "missed": schedule.missed,
        }
    )


def definition_from_json(id: str, text: str | bytes) -> Schedule:
    """What `definition_as_json` gave. Raises ValueError, KeyError, TypeError."""
    given = json.loads(text)
    fan_out = None
    if given["fan_out"]:
        activity, inboxes, key_id, priority = given["fan_out"]
        chosen = None if priority is None else Priority(priority)
        fan_out = FanOutTemplate(str.encode(activity), tuple(inboxes), key_id, chosen)
    return Schedule(
        id,
        Recurrence(*given["recurrence"]),
        fan_out,
        None if given["task"] is None else Task(given["task"]),
        given["arguments"],
        given["description"],
        MissedRuns(given["missed"]),
    )
