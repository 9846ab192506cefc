"""Keeps Redis's memory for work that can be done: while it is short, lanes of hosts that are down for long
go to SQL, and they come back when their host does. Nothing that was accepted is dropped for want of memory.
If Redis loses its memory, what is in SQL is not lost with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import aclosing
from typing import Final

import structlog

from fedsvc.archive.spill_store import SpilledDelivery, SpilledMessage, SpillStore
from fedsvc.domain.delivery import DeliveryId
from fedsvc.errors import ArchiveUnavailable, QueueUnavailable
from fedsvc.queue.record import HEADER
from fedsvc.queue.spill import Spill, SpillBatch, SpillMessage, stored, stored_fields, stored_group
from fedsvc.worker.affinity import Affinity
from fedsvc.worker.beats import Beats
from fedsvc.worker.memory import MemoryWatch
from fedsvc.worker.rounds import Rounds

log = structlog.get_logger(__name__)


def _as_queued(messages: Iterable[SpilledMessage]) -> list[SpillMessage]:
    return [
        SpillMessage(m.number, m.body, stored_fields(m.fields), m.identity, stored_group(m.fields))
        for m in messages
    ]


class Spiller:
    #: seconds between two rounds, and while SQL or Redis is away
    PAUSE: Final = 0.5
    AWAY: Final = 2.0
    #: deliveries left in a lane below which the next batch comes back
    FEW: Final = 1000
    #: seconds between two looks at what SQL has and Redis does not ask for. Of what is not needed there, what
    #: is found twice is deleted; it stays in SQL until then, for a Redis that crashes may forget that it came
    TIDY: Final = 60.0
    #: batches of which Redis is told in one round
    TOLD: Final = 50
    #: seconds after which a batch that SQL does not have keeps nothing waiting any more, and between two
    #: looks at what of it can be ended
    MISSING: Final = 300.0
    #: seconds between two rounds through all partitions, whoever's they are
    WHOLE: Final = 10.0

    def __init__(
        self, spill: Spill, store: SpillStore, memory: MemoryWatch, beats: Beats, affinity: Affinity
    ) -> None:
        self._spill = spill
        self._store = store
        self._memory = memory
        self._beats = beats
        self._affinity = affinity
        self._rounds = Rounds(affinity, self.WHOLE)
        self._tidied = 0.0
        self._unasked: set[tuple[int, int]] = set()
        #: batches that SQL did not have, and when that was seen first, until they are back
        self._missing: dict[tuple[int, int], float] = {}
        #: by partition: when it was looked last what of missing batches can be ended, and which were missing
        self._lost: dict[int, tuple[float, set[int]]] = {}
        #: whether it was told that SQL is away
        self._away = False

    async def run(self) -> None:
        """Spill and restore until cancelled. SQL or Redis being away only delays it."""
        while True:
            pause = self.PAUSE
            try:
                if await self.round():
                    pause = 0.0
                self._away = False
                self._beats.beat("spill")
            except QueueUnavailable as error:
                self._beats.fail("spill", str(error))
                pause = self.AWAY
            except ArchiveUnavailable as error:
                # Deliveries go on without SQL, as long as there is memory.
                if not self._away:
                    self._away = True
                    log.warning("spill_away", error=str(error))
                self._beats.beat("spill")
                pause = self.AWAY
            await asyncio.sleep(pause)

    async def round(self) -> bool:
        """Send away what is too much, bring back what is due. Returns whether there is more to do.

        Raises QueueUnavailable, ArchiveUnavailable.
        """
        more = False
        partitions = sorted(self._rounds.next())
        # First: nothing comes back to a Redis that is full, which must not keep it full.
        if self._memory.short:
            batches = await asyncio.gather(*(self._spill.next_batch(p) for p in partitions))
            for batch in batches:
                if batch is not None:
                    more |= await self._send_away(batch)
        due = await asyncio.gather(*(self._spill.due(p, self.FEW) for p in partitions))
        for partition, numbers in zip(partitions, due, strict=True):
            for number in numbers:
                more |= await self._restore(partition, number)
        now = asyncio.get_running_loop().time()
        if now - self._tidied >= self.TIDY:
            if await self.tell():
                return True
            self._tidied = now
            await self.tidy()
        return more

    async def _send_away(self, batch: SpillBatch) -> bool:
        deliveries = [
            SpilledDelivery(DeliveryId(batch.partition, sequence), record, HEADER.unpack_from(record)[6])
            for sequence, record in batch.deliveries
        ]
        messages = [SpilledMessage(m.number, m.body, stored(m), m.identity) for m in batch.messages]
        await self._store.write(batch.partition, batch.number, batch.host, deliveries, messages)
        if await self._spill.commit(batch):
            log.info("spilled", host=batch.host, deliveries=len(deliveries))
            return True
        await self._forget(batch.partition, batch.number)
        return False

    async def _restore(self, partition: int, number: int) -> bool:
        found = await self._store.read(partition, number)
        if found is None:
            await self._miss(partition, number)
            return False
        self._missing.pop((partition, number), None)
        host, deliveries, messages = found
        back = await self._spill.restore(
            partition, number, [(d.id.sequence, d.record) for d in deliveries], _as_queued(messages)
        )
        if back:
            log.info("restored", host=host, deliveries=back)
        return back > 0

    async def _miss(self, partition: int, number: int) -> None:
        """SQL does not have a batch that should come back: somebody else has just brought it, or SQL has lost
        it. It may have it again later, so the batch is asked for as long as there is hope."""
        if self._is_known_to_miss(partition, number):
            now = asyncio.get_running_loop().time()
            if now - self._missing[partition, number] >= self.MISSING:
                await self._spill.pass_over(partition, number)

    def _is_known_to_miss(self, partition: int, number: int) -> bool:
        """Whether this was found before. If not, it is told."""
        if (partition, number) in self._missing:
            return True
        self._missing[partition, number] = asyncio.get_running_loop().time()
        log.error("spilled_batch_missing", partition=partition, batch=number)
        return False

    async def tell(self) -> bool:
        """Tell Redis of what SQL has and it knows nothing of, as it has lost its memory or was restored to an
        earlier state. What the archive says has ended is left out, so that it does not end twice. Ends what
        waits for batches that SQL has lost. Returns whether there may be more. Raises as `round` does."""
        told = 0
        for partition in sorted(self._affinity.own):
            # Before SQL is asked: it has a batch before Redis takes note, and until long after it is back.
            away = await self._spill.away(partition)
            held = await self._store.batches(partition)
            lost = away.difference(held)
            for number in await self._spill.unknown(partition, held) if held else ():
                if told == self.TOLD:
                    return True
                told += 1
                await self._adopt(partition, number, lost)
            await self._give_up(partition, lost)
        return False

    async def _give_up(self, partition: int, lost: set[int]) -> None:
        """End what can be ended of what waits in batches that SQL does not have: again and again, since the
        time of one is over sooner than that of another. What is still lost then was so at the last look."""
        if not lost:
            self._lost.pop(partition, None)
            return
        for number in lost:
            self._is_known_to_miss(partition, number)
        now = asyncio.get_running_loop().time()
        since, before = self._lost.setdefault(partition, (now, lost))
        if now - since < self.MISSING:
            return
        self._lost[partition] = now, lost
        given_up = 0
        if surely := lost & before:
            async with aclosing(self._spill.lost(partition, surely)) as waiting:
                async for deliveries in waiting:
                    ended = await self._store.endings(partition, deliveries)
                    given_up += await self._spill.give_up(partition, deliveries, ended)
        if given_up:
            log.error("spilled_given_up", partition=partition, deliveries=given_up)

    async def _adopt(self, partition: int, number: int, lost: set[int]) -> None:
        found = await self._store.read(partition, number)
        if found is None:
            return
        host, deliveries, messages = found
        ended = await self._store.ended(partition, number)
        pending = [(d.id.sequence, d.record) for d in deliveries if d.id.sequence not in ended]
        adopted = await self._spill.adopt(partition, number, host, pending, _as_queued(messages), lost)
        if adopted:
            log.warning("spilled_batch_adopted", host=host, deliveries=adopted)

    async def tidy(self) -> None:
        """Delete what nobody asked for at the last look, and does not now. Raises as `round` does."""
        for partition in {partition for partition, _ in self._missing}:
            away = await self._spill.away(partition)
            for missing in [m for m in self._missing if m[0] == partition and m[1] not in away]:
                del self._missing[missing]
        unasked = set()
        for partition in sorted(self._affinity.own):
            held = await self._store.batches(partition)
            for number in await self._spill.stale(partition, held) if held else ():
                if (partition, number) in self._unasked:
                    await self._forget(partition, number)
                else:
                    unasked.add((partition, number))
        self._unasked = unasked

    async def _forget(self, partition: int, number: int) -> None:
        await self._store.delete(partition, number)
        await self._spill.forget(partition, number)
