"""Copies outcomes from the queue to SQL, in order and in batches.

One process archives a partition at a time (by a lease in Redis); two at once would only write the same rows
twice. Nothing leaves Redis before SQL has committed it, and SQL being away holds no delivery up.
"""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from fedsvc.archive.archive import Archive
from fedsvc.config import Settings
from fedsvc.domain.delivery import Delivery
from fedsvc.errors import ArchiveUnavailable, QueueUnavailable
from fedsvc.queue.outcomes import OutcomeLog
from fedsvc.worker.beats import Beats

log = structlog.get_logger(__name__)


class ArchivalHandler:
    #: outcomes of one partition in one transaction
    BATCH: Final = 200
    #: outcomes of all partitions in one transaction
    MAX_TRANSACTION: Final = 1000
    #: seconds between rounds when there is nothing to do, and while SQL or Redis is away
    PAUSE: Final = 0.5
    AWAY: Final = 2.0

    def __init__(
        self, settings: Settings, outcomes: OutcomeLog, archive: Archive, beats: Beats, name: str
    ) -> None:
        self._outcomes = outcomes
        self._archive = archive
        self._beats = beats
        self._name = name
        self._partitions = range(settings.partitions)
        self._away = False

    async def run(self) -> None:
        """Archive until cancelled. SQL or Redis being away only delays it."""
        while True:
            try:
                more = await self.round()
                pause = 0.0 if more else self.PAUSE
                if self._away:
                    self._away = False
                    log.info("archive_back")
                self._beats.beat("archive")
            except (ArchiveUnavailable, QueueUnavailable) as error:
                if not self._away:
                    self._away = True
                    log.warning("archive_away", error=str(error))
                self._beats.fail("archive", str(error))
                pause = self.AWAY
            await asyncio.sleep(pause)

    async def round(self) -> bool:
        """Archive one batch of each partition that is ours. Returns whether there is more.

        Raises ArchiveUnavailable, QueueUnavailable.
        """
        leads = await asyncio.gather(*(self._outcomes.lead(p, self._name) for p in self._partitions))
        ours = [p for p, leading in zip(self._partitions, leads, strict=True) if leading]
        if not ours:
            return False
        positions = await asyncio.gather(*(self._outcomes.position(p) for p in ours))
        limit = min(self.BATCH, max(1, self.MAX_TRANSACTION // len(ours)))
        batches = await asyncio.gather(
            *(self._outcomes.read(p, position, limit) for p, position in zip(ours, positions, strict=True))
        )
        rows: list[Delivery] = [outcome for outcomes, _, _ in batches for outcome in outcomes]
        if rows:
            await self._archive.record(rows)
        commits = [
            self._outcomes.commit(p, position, last, count)
            for p, position, (_, last, count) in zip(ours, positions, batches, strict=True)
            if count
        ]
        await asyncio.gather(*commits)
        return any(count >= limit for _, _, count in batches)
