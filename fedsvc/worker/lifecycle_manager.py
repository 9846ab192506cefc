"""Forgets what has had its time, sets right what may have gone wrong, and watches how full Redis is."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from fedsvc.errors import QueueUnavailable
from fedsvc.queue.hosts import Hosts
from fedsvc.queue.link import Link
from fedsvc.queue.outcomes import OutcomeLog
from fedsvc.queue.server_info import server_info
from fedsvc.worker.affinity import Affinity
from fedsvc.worker.beats import Beats
from fedsvc.worker.memory import MemoryWatch
from fedsvc.worker.rounds import Rounds

log = structlog.get_logger(__name__)


class LifecycleManager:
    #: outcomes of one partition forgotten in one script
    BATCH: Final = 500
    #: seconds between rounds, also while Redis is away: readiness should not lag behind its return
    PAUSE: Final = 1.0
    #: seconds between two looks for what has had its time, as long as there is memory
    FORGET: Final = 5.0
    #: seconds between two audits of the hosts
    AUDIT: Final = 60.0
    #: seconds between two rounds, and two audits, of all partitions, whoever's they are
    WHOLE: Final = 30.0
    WHOLE_AUDIT: Final = 600.0

    def __init__(
        self,
        link: Link,
        outcomes: OutcomeLog,
        hosts: Hosts,
        memory: MemoryWatch,
        beats: Beats,
        affinity: Affinity,
    ) -> None:
        self._link = link
        self._outcomes = outcomes
        self._hosts = hosts
        self._memory = memory
        self._beats = beats
        self._rounds = Rounds(affinity, self.WHOLE)
        self._audits = Rounds(affinity, self.WHOLE_AUDIT)
        self._forget_due = 0.0
        self._audited = 0.0

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
            await asyncio.sleep(pause)

    async def round(self) -> bool:
        """Returns whether there is more to forget. Raises QueueUnavailable."""
        was_short = self._memory.short
        self._memory.note(await server_info(self._link))
        if self._memory.short != was_short:
            log.warning("memory", used=round(self._memory.used, 3), short=self._memory.short)
        now = asyncio.get_running_loop().time()
        more = False
        if self._memory.short or now >= self._forget_due:
            more = await self._forget()
            self._forget_due = now if more else now + self.FORGET
        if now - self._audited >= self.AUDIT:
            self._audited = now
            await self._audit()
        return more

    async def _forget(self) -> bool:
        partitions = self._rounds.next()
        forgotten = await asyncio.gather(
            *(self._outcomes.trim(p, self.BATCH, early=self._memory.short) for p in partitions),
            *(self._outcomes.bury(p, self.BATCH) for p in partitions),
        )
        return max(forgotten) >= self.BATCH

    async def _audit(self) -> None:
        answers = await asyncio.gather(*(self._hosts.audit(p) for p in self._audits.next()))
        off = sum(abs(audited.backlog_off) for audited in answers)
        if off:
            log.warning("origin_backlogs_off", deliveries=off)
        wrong = sum(audited.wrong for audited in answers)
        if wrong:
            log.warning("hosts_set_right", hosts=wrong)
