"""Brings deliveries back: those whose time has come, and those that a dead worker held."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from fedsvc.config import Settings
from fedsvc.errors import QueueUnavailable
from fedsvc.queue.consumer import Consumer
from fedsvc.worker.beats import Beats
from fedsvc.worker.processor import Processor

log = structlog.get_logger(__name__)


class RetryManager:
    #: seconds between two rounds, at least and at most
    QUICKEST: Final = 0.01
    SLOWEST: Final = 0.5
    #: deliveries taken over from dead workers in one script
    BATCH: Final = 128

    def __init__(self, settings: Settings, consumer: Consumer, processor: Processor, beats: Beats) -> None:
        self._partitions = range(settings.partitions)
        #: a lease is renewed three times before it ends
        self._reclaim_every = settings.lease / 3
        self._consumer = consumer
        self._processor = processor
        self._beats = beats

    async def promote(self) -> None:
        """Promote what is due until cancelled. Redis being away only delays it."""
        while True:
            pause = self.SLOWEST
            try:
                pause = await self._promote_all()
                self._beats.beat("promote")
            except QueueUnavailable as error:
                self._beats.fail("promote", str(error))
            await asyncio.sleep(pause)

    async def reclaim(self) -> None:
        """Renew our leases and take over from the dead until cancelled. Redis being away only delays it."""
        while True:
            pause = self._reclaim_every
            try:
                taken = await self._reclaim_all()
                if taken:
                    log.info("reclaimed", deliveries=taken)
                    pause = self.SLOWEST  # there may be more
                self._beats.beat("reclaim")
            except QueueUnavailable as error:
                self._beats.fail("reclaim", str(error))
                pause = self.SLOWEST
            await asyncio.sleep(pause)

    async def _promote_all(self) -> float:
        """Returns seconds until the next round."""
        answers = await asyncio.gather(*(self._consumer.promote(p) for p in self._partitions))
        self._processor.poke(p for p, answer in zip(self._partitions, answers, strict=True) if answer.work)
        if any(answer.promoted >= self._consumer.PROMOTE for answer in answers):
            return self.QUICKEST
        due = min((a.next_due_ms for a in answers if a.next_due_ms is not None), default=None)
        if due is None:
            return self.SLOWEST
        wait = (due - self._consumer.clock.now_ms()) / 1000
        return min(self.SLOWEST, max(self.QUICKEST, wait))

    async def _reclaim_all(self) -> int:
        answers = await asyncio.gather(*(self._consumer.reclaim(p, self.BATCH) for p in self._partitions))
        return sum(self._processor.adopt(answer) for answer in answers)
