"""Audit events on their way to SQL: they wait in Redis, lest SQL being away stop anybody or lose any."""

from __future__ import annotations

from typing import Final

import orjson

from fedsvc.domain.audit import AuditEvent
from fedsvc.errors import QueueUnavailable
from fedsvc.queue.keys import Keys
from fedsvc.queue.link import Link

#: of the parts of an event
_TYPES: Final = [str, int, str, str, str, dict]

#: also if Redis is full: what operators do then is what makes room
_ADD: Final = """#!lua flags=allow-oom
if redis.call('LLEN', KEYS[1]) >= tonumber(ARGV[2]) then return 0 end
return redis.call('RPUSH', KEYS[1], ARGV[1])
"""


class AuditBuffer:
    """Every method raises QueueUnavailable."""

    #: events that wait at most; whoever adds more is told that the queue is unavailable
    MOST: Final = 100_000

    def __init__(self, link: Link, keys: Keys) -> None:
        self._link = link
        self._key = keys.audit

    async def add(self, event: AuditEvent) -> None:
        parts = [event.id, event.time_ms, event.principal, event.action, event.subject, dict(event.details)]
        raw = orjson.dumps(parts)
        if not await self._link.call("EVAL", _ADD, 1, self._key, raw, self.MOST):
            raise QueueUnavailable(f"{self.MOST} audit events wait for the database")

    async def waiting(self, limit: int) -> list[tuple[bytes, AuditEvent | None]]:
        """The oldest, each with what `forget` takes; None for one that was not written by us."""
        found = await self._link.call("LRANGE", self._key, 0, limit - 1)
        return [(raw, _event(raw)) for raw in found]

    async def forget(self, raw: bytes) -> None:
        """SQL has it. Another server may have said so already."""
        await self._link.call("LREM", self._key, 1, raw)


def _event(raw: bytes) -> AuditEvent | None:
    """None if it is none. A newer version may have more parts."""
    try:
        told = orjson.loads(raw)
    except ValueError:
        return None
    if not isinstance(told, list) or list(map(type, parts := told[: len(_TYPES)])) != _TYPES:
        return None
    return AuditEvent(*parts)
