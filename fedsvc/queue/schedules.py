"""Schedules, noted in Redis beside what they bring about; a run is in one worker's hands at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Any, Final

import structlog

from fedsvc.domain.schedule import Schedule, definition_as_json, definition_from_json
from fedsvc.errors import AlreadyExists, NotFound, Overloaded
from fedsvc.queue.keys import Keys
from fedsvc.queue.link import Link
from fedsvc.queue.script import Script

log = structlog.get_logger(__name__)

_FIELDS: Final = ("definition", "begun", "version", "paused", "next", "last", "error", "running")
#: bytes of what is kept of an error
_LONGEST: Final = 512


class Schedules:
    """Every method raises QueueUnavailable."""

    #: that there may be
    MOST: Final = 1000
    #: read in one go
    BATCH: Final = 20

    def __init__(self, link: Link, keys: Keys) -> None:
        self._link = link
        self._prefix = keys.schedules
        self._put = Script("put_schedule")
        self._take = Script("take_schedule")
        self._end = Script("end_schedule")
        #: those of whose being unreadable was told
        self._told: set[str] = set()

    async def create(self, schedule: Schedule, *, request_id: str = "") -> Schedule:
        """Note a new one; again under the same request id nothing is changed. Raises AlreadyExists,
        Overloaded."""
        done = await self._write("create", schedule, "request", request_id)
        if done == -1:
            raise Overloaded(f"there are {self.MOST} schedules already", 60)
        if done == 0:
            asked = await self._link.call("HGET", self._key(schedule.id), "request")
            if not request_id or asked != request_id.encode():
                raise AlreadyExists(f"there is a schedule {schedule.id} already")
        return await self.get(schedule.id)

    async def change(self, schedule: Schedule) -> Schedule | None:
        """Put this in the place of the version that it was made of; None if it has been changed meanwhile.
        Raises NotFound."""
        done = await self._write("change", schedule)
        if done == 0:
            raise _missing(schedule.id)
        return await self.get(schedule.id) if done == 1 else None

    async def delete(self, id: str) -> None:
        """A run that somebody has in hand is broken off, unless it is over soon. Raises NotFound."""
        if not await self._link.run(self._put, self._prefix, [id, "delete", 0, 0, 0], durable=True):
            raise _missing(id)

    async def get(self, id: str) -> Schedule:
        """Raises NotFound, also for one that cannot be read."""
        raw = await self._link.call("HMGET", self._key(id), *_FIELDS)
        if raw[0] is None:
            raise _missing(id)
        found = self._read(id, raw)
        if found is None:
            raise NotFound(f"there is no schedule {id} that this version can read")
        return found

    async def page(self, *, after: str, limit: int) -> tuple[list[Schedule], str]:
        """Up to `limit` by id, past that one, less those that cannot be read; and the id past which the next
        page begins, "" if there is none."""
        start = f"({after}" if after else "-"
        names = await self._link.call(
            "ZRANGE", f"{self._prefix}:all", start, "+", "BYLEX", "LIMIT", 0, limit + 1
        )
        ids, more = names[:limit], len(names) > limit
        return await self._readable(ids), ids[-1].decode() if more else ""

    async def signing_with(self, key_id: str) -> list[str]:
        """Ids of the schedules, paused ones among them, that sign with a key. Their inboxes are not read."""
        ids = await self._link.call("ZRANGE", f"{self._prefix}:all", 0, -1)
        keys = await asyncio.gather(*(self._link.call("HGET", self._key(id.decode()), "key") for id in ids))
        return [id.decode() for id, key in zip(ids, keys, strict=True) if key == key_id.encode()]

    async def due(self, now_ms: int) -> AsyncGenerator[Schedule, None]:
        """Those to be run, or taken up, by then: all of them, since any number at the front may be such as
        nobody here can run. One whose run is under way is what it was when that began."""
        ids = await self._link.call("ZRANGE", f"{self._prefix}:due", "-inf", now_ms, "BYSCORE")
        for start in range(0, len(ids), self.BATCH):
            for schedule in await self._readable(ids[start : start + self.BATCH], begun=True):
                yield schedule

    async def _readable(self, ids: Sequence[bytes], *, begun: bool = False) -> list[Schedule]:
        """One that a later version has written, or nobody, must not keep the others from running."""
        found = await asyncio.gather(
            *(self._link.call("HMGET", self._key(id.decode()), *_FIELDS) for id in ids)
        )
        read = (
            self._read(id.decode(), raw, begun=begun)
            for id, raw in zip(ids, found, strict=True)
            if raw[0] is not None
        )
        return [schedule for schedule in read if schedule is not None]

    def _read(self, id: str, raw: Sequence[Any], *, begun: bool = False) -> Schedule | None:
        try:
            return _schedule(id, raw, begun=begun)
        except (ValueError, KeyError, TypeError) as error:
            if id not in self._told:
                self._told.add(id)
                log.warning("schedule_unreadable", schedule=id, error=type(error).__name__)
            return None

    async def begin(self, schedule: Schedule, owner: str, lease_ms: int, time_ms: int, next_ms: int) -> bool:
        """Have the run of this time in hand for so long. False if somebody else has, or the schedule was
        changed."""
        return await self._taken(schedule, owner, lease_ms, time_ms, next_ms)

    async def keep(self, schedule: Schedule, owner: str, lease_ms: int, time_ms: int) -> bool:
        """Keep a run in hand, or take up one whose owner's time is over. False if it is somebody else's."""
        return await self._taken(schedule, owner, lease_ms, time_ms, 0)

    async def leave_out(self, schedule: Schedule, time_ms: int, next_ms: int, why: str) -> bool:
        """Runs up to this time are not made up for. False as for `begin`."""
        return await self._taken(schedule, "-", 0, time_ms, next_ms, why)

    async def end(self, schedule: Schedule, owner: str, time_ms: int, error: str = "") -> bool:
        """The run is over. False if it was somebody else's."""
        told = error.encode()[:_LONGEST]
        return bool(
            await self._link.run(self._end, self._prefix, [schedule.id, owner, time_ms, told], durable=True)
        )

    async def _write(self, how: str, schedule: Schedule, *more: str) -> int:
        arguments: list[str | int] = [schedule.id, how, schedule.version, schedule.next_run_ms, self.MOST]
        arguments += ["definition", definition_as_json(schedule), "paused", int(schedule.paused)]
        arguments += ["key", schedule.fan_out.key_id if schedule.fan_out else "", *more]
        return int(await self._link.run(self._put, self._prefix, arguments, durable=True))

    async def _taken(
        self, schedule: Schedule, owner: str, lease_ms: int, time_ms: int, next_ms: int, why: str = ""
    ) -> bool:
        arguments: list[str | int] = [schedule.id, schedule.version, owner, lease_ms, time_ms, next_ms, why]
        return bool(await self._link.run(self._take, self._prefix, arguments, durable=True))

    def _key(self, id: str) -> str:
        return f"{self._prefix}:id:{id}"


def _schedule(id: str, raw: Sequence[Any], *, begun: bool) -> Schedule:
    """`begun`: as it was when the run that is under way began, if one is."""
    definition, former, version, paused, next_run, last_run, error, running = raw
    return replace(
        definition_from_json(id, former if begun and former else definition),
        version=int(version),
        paused=paused == b"1",
        next_run_ms=int(next_run or 0),
        last_run_ms=int(last_run or 0),
        last_error=(error or b"").decode(errors="replace"),
        running_ms=int(running or 0),
    )


def _missing(id: str) -> NotFound:
    return NotFound(f"there is no schedule {id}")
