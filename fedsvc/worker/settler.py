"""Settlements wait here for company, some milliseconds at most, and go to Redis in batches."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

import structlog

from fedsvc.domain.inbox import host_of
from fedsvc.errors import FedsvcError, QueueUnavailable
from fedsvc.queue.consumer import Consumer, Settled, Settlement
from fedsvc.queue.outcome import MANY
from fedsvc.worker.beats import Beats
from fedsvc.worker.metrics import SETTLE_BATCH, SETTLE_SECONDS

log = structlog.get_logger(__name__)


class Settler:
    #: settlements in one script
    BATCH: Final = MANY
    #: seconds that the first of a partition waits for others while there is more in hand than can be sent: a
    #: script for one costs Redis as much as ten of a batch, and a host's slot that comes back sooner would
    #: have nothing sent sooner. Else its host's slot is worth more.
    LINGER: Final = 0.04
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
        partition whose lanes may give more; `busy` says whether there is more in hand than can be sent;
        `confirmed` is called for each that Redis took from us."""
        self._confirmed = confirmed
        self._consumer = consumer
        self._beats = beats
        self._settled = settled
        self._woken = woken
        self._busy = busy
        self._waiting: dict[int, list[Settlement]] = {}
        #: since when those of a partition wait (seconds, monotonic)
        self._since: dict[int, float] = {}
        self._count = 0
        self._some = asyncio.Event()
        self._none = asyncio.Event()
        self._none.set()

    def __len__(self) -> int:
        """How many have not been confirmed by Redis."""
        return self._count

    def add(self, settlement: Settlement) -> None:
        partition = settlement.admitted.id.partition
        if partition not in self._waiting:
            self._waiting[partition] = []
            self._since[partition] = time.monotonic()
        self._waiting[partition].append(settlement)
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
            await asyncio.sleep(self.SHORT)
            if await self._flush():
                self._beats.beat("settle")
            else:
                await asyncio.sleep(self.PAUSE)

    async def drained(self) -> None:
        """Wait until everything is confirmed."""
        await self._none.wait()

    async def _flush(self) -> bool:
        """Settle what has waited long enough. Whether Redis took all of that."""
        self._some.clear()
        waiting = {partition: self._waiting.pop(partition) for partition in self._ripe()}
        flights = [
            self._settle(partition, items[start : start + self.BATCH])
            for partition, items in waiting.items()
            for start in range(0, len(items), self.BATCH)
        ]
        done = all(await asyncio.gather(*flights))
        if self._waiting:
            self._some.set()
        return done

    def _ripe(self) -> list[int]:
        """Partitions whose settlements wait for no others any more."""
        if not self._busy():
            return list(self._waiting)
        past = time.monotonic() - self.LINGER
        return [p for p, items in self._waiting.items() if len(items) >= self.BATCH or self._since[p] <= past]

    async def _settle(self, partition: int, batch: list[Settlement]) -> bool:
        begun = time.perf_counter()
        try:
            settled = await self._consumer.settle(partition, batch)
            SETTLE_SECONDS.observe(time.perf_counter() - begun)
            SETTLE_BATCH.observe(len(batch))
        except QueueUnavailable as error:
            self._beats.fail("settle", str(error))
            self._put_back(partition, batch)
            return False
        except FedsvcError as error:
            if len(batch) > 1:  # one of them is at fault: the others must not suffer for it
                for done, settlement in enumerate(batch, 1):
                    if not await self._settle(partition, [settlement]):
                        self._put_back(partition, batch[done:])
                        return False
                return True
            log.error("settle_refused", delivery=str(batch[0].admitted.id), error=str(error))
            settled = Settled({0}, False)
        for index, settlement in enumerate(batch):
            self._count -= 1
            if index in settled.passed_over:
                log.info("settled_by_another", delivery=str(settlement.admitted.id))
            else:
                self._confirmed(settlement)
                if settlement.pause_ms:
                    host = host_of(settlement.admitted.record.inbox)
                    log.info("host_asked_to_wait", host=host, seconds=settlement.pause_ms / 1000)
            self._settled(settlement)
        for host, opened in settled.circuits:
            if opened:
                log.info("circuit_opened", host=host)
            else:
                log.info("circuit_closed", host=host)
        if settled.woken:
            self._woken(partition)
        if not self._count:
            self._none.set()
        return True

    def _put_back(self, partition: int, batch: list[Settlement]) -> None:
        self._waiting.setdefault(partition, [])[:0] = batch
