"""Who works beside us, and what they tell: follows the bell, keeps `affinity.py` informed, and looks after
what others leave lying."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress
from typing import Final

import structlog

from fedsvc.errors import QueueUnavailable
from fedsvc.queue.bell import Announced, Bell, Rung
from fedsvc.queue.consumer import Consumer
from fedsvc.worker.affinity import Affinity
from fedsvc.worker.metrics import PARTITIONS, WORKERS
from fedsvc.worker.processor import Processor

log = structlog.get_logger(__name__)


class Roster:
    #: seconds between two looks at who is alive
    EVERY: Final = 1.0
    #: seconds until the bell is listened to again when its connection was lost
    PAUSE: Final = 0.5

    def __init__(self, bell: Bell, consumer: Consumer, affinity: Affinity, processor: Processor) -> None:
        self._bell = bell
        self._consumer = consumer
        self._affinity = affinity
        self._processor = processor
        self._announced = False

    async def run(self) -> None:
        """Until cancelled. Redis being away only delays it."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            try:
                if loop.time() >= due:
                    due = loop.time() + self.EVERY
                    await self._call_the_roll()
                await self._look()
            except QueueUnavailable as error:
                log.debug("roster_unread", error=str(error))
            wait = self._affinity.seconds_to_look()
            with suppress(TimeoutError):
                async with asyncio.timeout(
                    max(0.01, min(due - loop.time(), self.EVERY if wait is None else wait))
                ):
                    await self._processor.elsewhere.wait()
            self._processor.elsewhere.clear()

    async def listen(self) -> None:
        """Follow the bell until cancelled."""
        while True:
            try:
                async with aclosing(self._bell.listen()) as telling:
                    async for told in telling:
                        match told:
                            case Rung(partition, urgent):
                                self._processor.poke((partition,), first=True, urgent=urgent)
                            case Announced(worker, arrives):
                                self._meet(worker, arrives)
            except QueueUnavailable as error:
                log.debug("bell_lost", error=str(error))
                await asyncio.sleep(self.PAUSE)

    def _meet(self, worker: str, arrives: bool) -> None:
        before = self._affinity.own
        if arrives:
            self._affinity.joined(worker)
        else:
            self._affinity.left(worker)
        self._divided(before)

    def _divided(self, before: frozenset[int]) -> None:
        PARTITIONS.set(len(self._affinity.own))
        WORKERS.set(len(self._affinity.workers))
        self._processor.poke(self._affinity.own - before)

    async def leave(self) -> None:
        """Tell the others that we take nothing more. Raises QueueUnavailable."""
        await self._bell.announce(self._consumer.name, arrives=False)

    async def _call_the_roll(self) -> None:
        alive = await self._consumer.alive()
        if self._affinity.name not in alive:
            return  # nobody knows us yet, or Redis came back empty: everything is ours meanwhile
        if not self._announced:
            self._announced = True
            await self._bell.announce(self._consumer.name, arrives=True)
        before = self._affinity.own
        self._affinity.see(alive)
        self._divided(before)

    async def _look(self) -> None:
        """At partitions whose bell has rung a while ago, if they are another's."""
        due, urgent = self._affinity.looks_due()
        self._processor.help_out(urgent)
        if due and self._processor.idle:  # else the next round is soon enough
            answers = await asyncio.gather(*(self._consumer.promote(p, look=True) for p in due))
            waited = {p: answer.waited_ms for p, answer in zip(due, answers, strict=True)}
            self._processor.poke(self._affinity.looked(waited))
