"""Deliveries wherever they are, in the queue, in the archive or parked in SQL, shown as one.

What the caller that is being served may not see is as if it were not there.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from fedsvc.archive.archive import Archive
from fedsvc.archive.spill_store import SpilledDelivery, SpilledMessage, SpillStore
from fedsvc.domain.delivery import Delivery, DeliveryId, DeliveryState
from fedsvc.domain.message import Message
from fedsvc.errors import QueueCorrupt
from fedsvc.queue.reader import Reader
from fedsvc.queue.record import Finished, shown, unpack
from fedsvc.queue.spill import stored_fields
from fedsvc.server.caller import allowed_origins

#: times that queue and archive are counted to agree on an activity under way
_COUNTS: Final = 5
#: of the archive, read at a time
_ROWS: Final = 500


class Lookup:
    """Every method raises QueueUnavailable, ArchiveUnavailable, and QueueCorrupt for what cannot be read."""

    def __init__(self, reader: Reader, archive: Archive, spilled: SpillStore) -> None:
        self._reader = reader
        self._archive = archive
        self._spilled = spilled

    async def find(self, id: DeliveryId) -> Delivery | None:
        """A delivery wherever it is, if the caller may see it."""
        origins = allowed_origins()
        found = await self._reader.get(id, origins)
        if found is None:
            return await self._archive.get(id, origins)
        return (await self._completed([found]))[0]

    async def summary(self, activity_id: str) -> Counter[DeliveryState]:
        """Of all deliveries of an activity that the caller may see: the archive's, and the queue's that are
        not archived yet."""
        origins = allowed_origins()
        for again in range(_COUNTS):
            total, queued = await self._reader.count_activity(activity_id, origins)
            counts = queued + Counter(await self._archive.count_by_activity(activity_id, origins))
            if again and counts.total() != total:
                counts -= Counter({DeliveryState.DEAD: await self._replayed(activity_id)})
            # What was archived between two of these reads was counted twice.
            if counts.total() == total or not total:
                break
        return counts

    async def page(
        self, activity_id: str, after: DeliveryId | None, limit: int, states: frozenset[DeliveryState]
    ) -> list[Delivery]:
        """Deliveries of an activity by id, `limit` of those past `after` that the caller may see; in any
        state if none is named. What both queue and archive hold is shown as the queue has it."""
        queue, archived = await asyncio.gather(
            self._reader.list_activity(
                activity_id, after=after, limit=limit, states=states, origins=allowed_origins()
            ),
            self._ended(activity_id, after, limit, states),
        )
        merged = {d.id: d for d in archived} | {d.id: d for d in queue}
        return await self._completed([merged[id] for id in sorted(merged)][:limit])

    async def _completed(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Those of which the queue holds no more than the state are filled in from SQL."""
        away = [d.id for d in deliveries if not d.inbox and d.state is DeliveryState.PARKED]
        if not away:
            return list(deliveries)
        found = {d.id: (d, message) for d, message, _ in await self._spilled.find(away)}
        return [_shown(*found[d.id]) if d.id in found and not d.inbox else d for d in deliveries]

    async def _replayed(self, activity_id: str) -> int:
        """How many deliveries of an activity the archive holds as dead letters that they are no more."""
        replayed, after = 0, None
        while True:
            rows = await self._archive.list_by_activity(
                activity_id, after=after, limit=_ROWS, states={DeliveryState.DEAD}, origins=allowed_origins()
            )
            replayed += len(await self._alive_again(rows))
            if len(rows) < _ROWS:
                return replayed
            after = rows[-1].id

    async def _alive_again(self, rows: Sequence[Delivery]) -> set[DeliveryId]:
        """Those of the archive's that were replayed: until they end anew it holds how they ended before."""
        dead = [row.id for row in rows if row.state is DeliveryState.DEAD]
        return {d.id for d in await self._reader.show(dead) if d.state is not DeliveryState.DEAD}

    async def _ended(
        self, activity_id: str, after: DeliveryId | None, limit: int, states: frozenset[DeliveryState]
    ) -> list[Delivery]:
        """What the archive holds, without what has another state by now than those asked for."""
        found: list[Delivery] = []
        while True:
            rows = await self._archive.list_by_activity(
                activity_id, after=after, limit=limit, states=states, origins=allowed_origins()
            )
            gone = await self._alive_again(rows) if states else set()
            found += [row for row in rows if row.id not in gone]
            if len(rows) < limit or len(found) >= limit:
                return found[:limit]
            after = rows[-1].id


def _shown(delivery: SpilledDelivery, message: SpilledMessage) -> Delivery:
    """A delivery that waits in SQL until its host is back."""
    record = unpack(delivery.record, delivery.id)
    if isinstance(record, Finished):
        raise QueueCorrupt(f"delivery {delivery.id} is finished")
    told = Message.unpack(b"", stored_fields(message.fields))
    last = record.history[-1] if record.history else None
    return replace(
        shown(delivery.id, record, told, DeliveryState.PARKED),
        reason=last.reason if last else None,
        status=last.status if last else 0,
    )
