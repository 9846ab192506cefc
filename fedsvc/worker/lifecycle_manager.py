"""Forgets what has had its time: archived outcomes past their retention in Redis."""

from __future__ import annotations

import asyncio
from typing import Final

from fedsvc.config import Settings
from fedsvc.errors import QueueUnavailable
from fedsvc.queue.outcomes import OutcomeLog
from fedsvc.worker.beats import Beats


class LifecycleManager:
    #: outcomes of one partition forgotten in one script
    BATCH: Final = 500
    #: seconds between rounds, and while Redis is away: readiness should not lag behind its return
    PAUSE: Final = 5.0
    AWAY: Final = 1.0

    def __init__(self, settings: Settings, outcomes: OutcomeLog, beats: Beats) -> None:
        self._outcomes = outcomes
        self._beats = beats
        self._partitions = range(settings.partitions)

    async def run(self) -> None:
        """Tidy up until cancelled. Redis being away only delays it."""
        while True:
            pause = self.PAUSE
            try:
                if await self.round():
                    pause = 0.05
                self._beats.beat("tidy")
            except QueueUnavailable as error:
                self._beats.fail("tidy", str(error))
                pause = self.AWAY
            await asyncio.sleep(pause)

    async def round(self) -> bool:
        """Returns whether there is more to forget. Raises QueueUnavailable."""
        forgotten = await asyncio.gather(*(self._outcomes.trim(p, self.BATCH) for p in self._partitions))
        return max(forgotten) >= self.BATCH
