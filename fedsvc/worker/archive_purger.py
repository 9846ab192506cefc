"""Forgets archived deliveries whose retention is over: a few at a time, by one worker of all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from fedsvc.archive.archive import Archive
from fedsvc.archive.archived_log import ArchivedLog
from fedsvc.archive.audit_log import AuditLog
from fedsvc.config import Settings
from fedsvc.domain.delivery import DeliveryState
from fedsvc.errors import ArchiveUnavailable, QueueUnavailable
from fedsvc.queue.outcomes import OutcomeLog
from fedsvc.worker.affinity import Affinity

log = structlog.get_logger(__name__)

#: those that the shorter retention is for; the other ended ones are dead letters
_COMPLETED: Final = (
    DeliveryState.DELIVERED,
    DeliveryState.CANCELLED,
    DeliveryState.SUPERSEDED,
    DeliveryState.EXPIRED,
)
_DEAD: Final = (DeliveryState.DEAD, DeliveryState.PURGED)


class ArchivePurger:
    """No delivery waits for it, and the archival handler for one small batch at most: readiness does not
    depend on it."""

    #: rows in one transaction
    BATCH: Final = 500
    #: seconds between two batches at least, and how many times as long as the batch itself took: what
    #: archives gets most of the database's time
    BREATH: Final = 0.05
    SHARE: Final = 3.0
    #: seconds until it is looked again when nothing was due, another worker does it, or SQL or Redis is away
    PAUSE: Final = 60.0
    AWAY: Final = 10.0

    def __init__(
        self,
        settings: Settings,
        outcomes: OutcomeLog,
        archive: Archive,
        now_ms: Callable[[], int],
        affinity: Affinity,
    ) -> None:
        """`now_ms`: Redis's clock, so that a worker whose own clock is ahead forgets nothing early."""
        self._outcomes = outcomes
        self._archive = archive
        self._log = ArchivedLog(archive.engine)
        self._audit = AuditLog(archive.engine)
        self._audit_retention_ms = settings.audit_retention * 1000
        self._event_retention_ms = settings.archive_retention * 1000
        self._now_ms = now_ms
        self._affinity = affinity
        self._retention_ms = {
            **dict.fromkeys(_COMPLETED, settings.archive_retention * 1000),
            **dict.fromkeys(_DEAD, settings.archive_dead_retention * 1000),
        }
        self._away = False

    async def run(self) -> None:
        """Purge until cancelled. SQL or Redis being away only delays it."""
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            try:
                more = await self.round()
                pause = max(self.BREATH, self.SHARE * (loop.time() - started)) if more else self.PAUSE
                self._away = False
            except (ArchiveUnavailable, QueueUnavailable) as error:
                if not self._away:
                    self._away = True
                    log.warning("purge_away", error=str(error))
                pause = self.AWAY
            await asyncio.sleep(pause)

    async def round(self) -> bool:
        """Purge one batch, if it is ours to do. Returns whether there is more.

        Raises ArchiveUnavailable, QueueUnavailable.
        """
        # Who archives the first partition purges for all.
        if 0 not in self._affinity.own:
            return False
        return await self._outcomes.lead(0, self._affinity.name) and await self.batch()

    async def batch(self) -> bool:
        """Purge one batch, whoever else may. Returns whether there is more. Raises ArchiveUnavailable."""
        now_ms = self._now_ms()
        due = {state: now_ms - retention for state, retention in self._retention_ms.items()}
        events = await self._log.purge(now_ms - self._event_retention_ms, self.BATCH)
        audited = await self._audit.purge(now_ms - self._audit_retention_ms, self.BATCH)
        return max(events, audited, await self._archive.purge(due, self.BATCH)) >= self.BATCH
