"""Brings deliveries back: those whose time has come, those that a dead worker held, and those of ours whose
end Redis has lost, as when it crashed, or is a replica that had not heard of it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

import structlog

from fedsvc.config import Settings
from fedsvc.errors import QueueUnavailable
from fedsvc.queue.consumer import Admitted, Consumer
from fedsvc.worker.affinity import Affinity
from fedsvc.worker.beats import Beats
from fedsvc.worker.processor import Processor

log = structlog.get_logger(__name__)


class RetryManager:
    #: seconds between two rounds, at least and at most
    QUICKEST: Final = 0.01
    SLOWEST: Final = 0.5
    #: deliveries taken over from dead workers in one script
    BATCH: Final = 128
    #: of those that have long been with us, looked at in one script
    LOOKED_AT: Final = 4096

    def __init__(
        self, settings: Settings, consumer: Consumer, processor: Processor, affinity: Affinity, beats: Beats
    ) -> None:
        self._partitions = range(settings.partitions)
        self._affinity = affinity
        #: when others' partitions are looked at next (seconds, the loop's clock)
        self._look_due = 0.0
        #: a lease is renewed three times before it ends
        self._reclaim_every = settings.lease / 3
        self._lease_ms = settings.lease_ms
        #: by partition: entries that Redis had with us when it was looked last, and that were not
        self._strangers: dict[int, set[int]] = {}
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

    async def keep(self) -> None:
        """Renew our leases until cancelled, and take nothing over: what a worker that stops has still in
        flight is nobody else's. Redis being away only delays it."""
        while True:
            with suppress(QueueUnavailable):
                await asyncio.gather(*map(self._consumer.keep, self._partitions))
            await asyncio.sleep(self._reclaim_every)

    async def _promote_all(self) -> float:
        """Returns seconds until the next round. Our own partitions are promoted when something is due; others
        now and then, since whose they are may be dead or slow."""
        now = asyncio.get_running_loop().time()
        own = self._affinity.own
        look = not self._affinity.alone and now >= self._look_due
        others: frozenset[int] = frozenset()
        if look:
            self._look_due = now + self._affinity.ROUND
            others = self._affinity.to_look_at()
        partitions = sorted(own | others)
        found = await asyncio.gather(*(self._consumer.promote(p, look=look) for p in partitions))
        answers = dict(zip(partitions, found, strict=True))
        self._processor.poke(p for p, answer in answers.items() if p in own and answer.work)
        if look:
            self._processor.poke(self._affinity.looked({p: a.waited_ms for p, a in answers.items()}))
        if any(answer.promoted >= self._consumer.PROMOTE for answer in found):
            return self.QUICKEST
        times = (a.next_due_ms for p, a in answers.items() if p in own and a.next_due_ms is not None)
        due = min(times, default=None)
        if due is None:
            return self.SLOWEST
        wait = (due - self._consumer.clock.now_ms()) / 1000
        return min(self.SLOWEST, max(self.QUICKEST, wait))

    async def _reclaim_all(self) -> int:
        taken = await asyncio.gather(*map(self._reclaim, self._partitions), return_exceptions=True)
        for answer in taken:
            if isinstance(answer, BaseException):
                raise answer
        return sum(answer for answer in taken if isinstance(answer, int))

    async def _reclaim(self, partition: int) -> int:
        """What a partition gives is taken on at once: it is ours, whatever becomes of the others' answers."""
        try:
            taken = self._processor.adopt(await self._consumer.reclaim(partition, self.BATCH))
            return taken + self._processor.adopt(await self._forgotten(partition))
        except QueueUnavailable:
            self._processor.doubtful.add(partition)
            raise

    async def _forgotten(self, partition: int) -> list[Admitted]:
        """What Redis has in flight with us and we have not in hand. When it is found first, its end may have
        come to Redis after our question."""
        before = self._strangers.pop(partition, set())
        mine = await self._consumer.recover(partition, self.LOOKED_AT, for_ms=self._lease_ms)
        strangers = [a for a in mine if (partition, a.entry) not in self._processor.held]
        self._strangers[partition] = {a.entry for a in strangers} - before
        return [a for a in strangers if a.entry in before]
