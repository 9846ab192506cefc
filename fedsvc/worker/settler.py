"""Settlements wait here for company, some milliseconds at most, and go to Redis in batches."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from fedsvc.errors import FedsvcError, QueueUnavailable
from fedsvc.queue.consumer import Consumer, Settlement
from fedsvc.worker.beats import Beats

log = structlog.get_logger(__name__)


class Settler:
    #: settlements in one script
    BATCH: Final = 128
    #: seconds that the first of a batch waits for others while many are on their way: a script for twenty
    #: costs Redis little more than a script for one. With few, their hosts' slots are worth more.
    LINGER: Final = 0.02
    SHORT: Final = 0.002
    #: seconds between tries while Redis is away
    PAUSE: Final = 0.25

    def __init__(
        self,
        consumer: Consumer,
        beats: Beats,
        settled: Callable[[Settlement], None],
        woken: Callable[[int], None],
        busy: Callable[[], bool],
        confirmed: Callable[[Settlement], None] = lambda _: None,
    ) -> None:
        """`settled` is called for each when its flight has ended, by us or by somebody else; `woken` for a
        partition whose lanes may give more; `busy` says whether many deliveries are on their way; `confirmed`
        is called for each that Redis took from us."""
        self._confirmed = confirmed
        self._consumer = consumer
        self._beats = beats
        self._settled = settled
        self._woken = woken
        self._busy = busy
        self._waiting: dict[int, list[Settlement]] = {}
        self._count = 0
        self._some = asyncio.Event()
        self._none = asyncio.Event()
        self._none.set()

    def __len__(self) -> int:
        """How many have not been confirmed by Redis."""
        return self._count

    def add(self, settlement: Settlement) -> None:
        self._waiting.setdefault(settlement.admitted.id.partition, []).append(settlement)
        self._count += 1
        self._none.clear()
        self._some.set()

    async def run(self) -> None:
        """Flush until cancelled. Redis being away only delays it."""
        while True:
            try:
                async with asyncio.timeout(1.0):
                    await self._some.wait()
            except TimeoutError:
                self._beats.beat("settle")
                continue
            if self._count < self.BATCH:
                await asyncio.sleep(self.LINGER if self._busy() else self.SHORT)
            if await self._flush():
                self._beats.beat("settle")
            else:
                await asyncio.sleep(self.PAUSE)

    async def drained(self) -> None:
        """Wait until everything is confirmed."""
        await self._none.wait()

    async def _flush(self) -> bool:
        """Whether Redis took all that waited."""
        self._some.clear()
        waiting, self._waiting = self._waiting, {}
        flights = [
            self._settle(partition, items[start : start + self.BATCH])
            for partition, items in waiting.items()
            for start in range(0, len(items), self.BATCH)
        ]
        done = all(await asyncio.gather(*flights))
        if self._waiting:
            self._some.set()
        return done

    async def _settle(self, partition: int, batch: list[Settlement]) -> bool:
        try:
            passed_over, woken = await self._consumer.settle(partition, batch)
        except QueueUnavailable as error:
            self._beats.fail("settle", str(error))
            self._waiting.setdefault(partition, [])[:0] = batch
            return False
        except FedsvcError as error:
            if len(batch) > 1:  # one of them is at fault: the others must not suffer for it
                for done, settlement in enumerate(batch, 1):
                    if not await self._settle(partition, [settlement]):
                        self._waiting.setdefault(partition, []).extend(batch[done:])
                        return False
                return True
            log.error("settle_refused", delivery=str(batch[0].admitted.id), error=str(error))
            passed_over, woken = {0}, False
        for index, settlement in enumerate(batch):
            self._count -= 1
            if index in passed_over:
                log.info("settled_by_another", delivery=str(settlement.admitted.id))
            else:
                self._confirmed(settlement)
            self._settled(settlement)
        if woken:
            self._woken(partition)
        if not self._count:
            self._none.set()
        return True
