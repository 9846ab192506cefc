"""Who changed what, in SQL."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, select, tuple_
from sqlalchemy.ext.asyncio import AsyncEngine

from fedsvc.archive.engine import insert_into
from fedsvc.archive.tables import audit_events
from fedsvc.archive.transaction import transaction
from fedsvc.domain.audit import AuditEvent

_LONGEST = 2048


class AuditLog:
    """Safe to share. Every method raises ArchiveUnavailable if the database does not answer in time."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._insert = insert_into(audit_events, engine.dialect).on_conflict_do_nothing()

    async def record(self, events: Sequence[AuditEvent]) -> None:
        """Written again, an event changes nothing."""
        rows = [
            {
                "id": e.id,
                "time_ms": e.time_ms,
                "principal": e.principal[:64],
                "action": e.action[:64],
                "subject": e.subject[:_LONGEST],
                "details": dict(e.details),
            }
            for e in events
        ]
        async with transaction(self._engine) as connection:
            await connection.execute(self._insert, rows)

    async def list(
        self,
        *,
        principal: str = "",
        action: str = "",
        start_ms: int = 0,
        end_ms: int = 0,
        before: tuple[int, str] | None = None,
        limit: int,
    ) -> list[AuditEvent]:
        """Newest first, those that fit all that is given, past the position `before` (time and id). Times are
        milliseconds since the epoch, 0 for none; the end is not part of it."""
        c = audit_events.c
        statement = select(audit_events).order_by(c.time_ms.desc(), c.id.desc()).limit(limit)
        if principal:
            statement = statement.where(c.principal == principal)
        if action:
            statement = statement.where(c.action == action)
        if start_ms:
            statement = statement.where(c.time_ms >= start_ms)
        if end_ms:
            statement = statement.where(c.time_ms < end_ms)
        if before is not None:
            statement = statement.where(tuple_(c.time_ms, c.id) < before)
        async with transaction(self._engine) as connection:
            rows = (await connection.execute(statement)).all()
        return [
            AuditEvent(row.id, row.time_ms, row.principal, row.action, row.subject, row.details)
            for row in rows
        ]

    async def purge(self, before_ms: int, limit: int) -> int:
        """Forget events before that time, oldest first, `limit` at most. Returns how many."""
        c = audit_events.c
        oldest = select(c.id).where(c.time_ms < before_ms).order_by(c.time_ms).limit(limit)
        async with transaction(self._engine) as connection:
            result = await connection.execute(delete(audit_events).where(c.id.in_(oldest)))
            return int(result.rowcount)
