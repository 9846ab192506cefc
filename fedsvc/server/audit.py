"""Writes down who changed what: at once in Redis, and from there in SQL."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import structlog

from fedsvc.archive.audit_log import AuditLog
from fedsvc.domain.audit import AuditEvent
from fedsvc.domain.operation import Operation
from fedsvc.errors import ArchiveUnavailable, QueueUnavailable
from fedsvc.queue.audit_buffer import AuditBuffer
from fedsvc.server.caller import caller

log = structlog.get_logger(__name__)


class Audit:
    #: seconds between two looks at what waits
    EVERY: Final = 5.0
    #: events in one transaction
    BATCH: Final = 500

    def __init__(self, buffer: AuditBuffer, events: AuditLog, clock: Callable[[], float] = time.time) -> None:
        self._buffer = buffer
        self._events = events
        self._clock = clock
        self._added = asyncio.Event()
        self._away = False

    async def record(self, action: str, subject: str = "", /, **details: Any) -> None:
        """What the caller that is being served has just done. `details`: what JSON can say, no secrets.
        Raises QueueUnavailable: then the caller had better do it again."""
        time_ms = int(self._clock() * 1000)
        id = f"{time_ms:012x}{secrets.token_hex(10)}"
        await self._add(AuditEvent(id, time_ms, caller().name, action, subject, details))

    async def record_begin(self, operation: Operation, action: str, /, **details: Any) -> None:
        """That an operation was begun, by the caller that is being served. Recorded again, it is kept once.
        Raises QueueUnavailable."""
        began = hashlib.blake2b(f"{operation.id} begins".encode(), digest_size=10).hexdigest()
        await self._add_once(operation, began, action, details)

    async def record_end(self, operation: Operation, action: str, /, **details: Any) -> None:
        """What came of an operation. Recorded again, it is kept once. Raises QueueUnavailable."""
        await self._add_once(operation, operation.id, action, details)

    async def _add_once(
        self, operation: Operation, named: str, action: str, details: Mapping[str, Any]
    ) -> None:
        id = f"{operation.created_ms:012x}{named}"
        time_ms = int(self._clock() * 1000)
        await self._add(AuditEvent(id, time_ms, operation.principal, action, operation.id, details))

    async def _add(self, event: AuditEvent) -> None:
        log.info(
            "audit", action=event.action, subject=event.subject, principal=event.principal, **event.details
        )
        await self._buffer.add(event)
        self._added.set()

    async def move(self) -> int:
        """Write what waits to SQL, a batch of it. Returns how many there were. Raises ArchiveUnavailable,
        QueueUnavailable."""
        waiting = await self._buffer.waiting(self.BATCH)
        if events := [event for _, event in waiting if event is not None]:
            await self._events.record(events)
        for raw, event in waiting:
            if event is None:  # it must not block those behind it
                log.error("audit_event_unreadable", bytes=len(raw))
            await self._buffer.forget(raw)
        return len(waiting)

    async def run(self) -> None:
        """For ever. SQL or Redis being away only delays it."""
        while True:
            try:
                while await self.move():
                    pass
                self._away = False
            except (ArchiveUnavailable, QueueUnavailable) as error:
                if not self._away:
                    self._away = True
                    log.warning("audit_away", error=str(error))
            if self._away:  # what is added meanwhile does not bring it back
                await asyncio.sleep(self.EVERY)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.EVERY):
                    await self._added.wait()
            self._added.clear()
