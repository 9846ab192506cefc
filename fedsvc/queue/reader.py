"""Shows what is in the queue, one delivery or one activity. Changes nothing.

Whoever has rights to some `origins` only sees theirs, and is told nothing of others; None stands for all.
"""

from __future__ import annotations

import asyncio
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

from fedsvc.config import Settings
from fedsvc.domain.activity import activity_key
from fedsvc.domain.delivery import Delivery, DeliveryId, DeliveryState
from fedsvc.domain.inbox import host_key
from fedsvc.domain.message import UNKNOWN, Message
from fedsvc.errors import QueueCorrupt
from fedsvc.queue import outcome
from fedsvc.queue.keys import Keys
from fedsvc.queue.link import Link
from fedsvc.queue.record import Finished, shown, unpack
from fedsvc.queue.script import Script

#: of an activity's index, past its head: see `lua/enqueue.lua`
_SEGMENT: Final = struct.Struct(">QI8s")
_HEAD: Final = 8
#: of a group's: see `lua/groups.lua`
_GROUP_SEGMENT: Final = struct.Struct(">QI")
_GROUP_HEAD: Final = 4


def sequences_of_activity(index: bytes, origins: Origins = None) -> Iterator[int]:
    """Sequences in an activity's index: of the deliveries of these origins, or of all."""
    keys = None if origins is None else {host_key(origin) for origin in origins}
    at = _HEAD
    while at + _SEGMENT.size <= len(index):
        base, count, origin = _SEGMENT.unpack_from(index, at)
        if keys is None or origin in keys:
            yield from range(base, base + count)
        at += _SEGMENT.size + 8 * count


def sequences_of_group(index: bytes) -> Iterator[int]:
    """All sequences in the index of a group, which belongs to one origin."""
    at = _GROUP_HEAD
    while at + _GROUP_SEGMENT.size <= len(index):
        base, count = _GROUP_SEGMENT.unpack_from(index, at)
        yield from range(base, base + count)
        at += _GROUP_SEGMENT.size + 8 * count


#: None for all
Origins = frozenset[str] | None


def _among(origins: Origins, origin: str) -> bool:
    return origins is None or origin in origins


class Reader:
    #: sequences in one script
    CHUNK: Final = 500

    def __init__(self, link: Link, keys: Keys, settings: Settings) -> None:
        self._link = link
        self._keys = keys
        self._partitions = settings.partitions
        self._look = Script("look")
        self._recipients = Script("recipients")

    async def get(self, id: DeliveryId, origins: Origins = None) -> Delivery | None:
        """None if Redis does not hold it (any more). Raises QueueUnavailable, QueueCorrupt."""
        if id.partition >= self._partitions:
            return None
        (found,) = await self._show(id.partition, [id.sequence])
        return found if found is not None and _among(origins, found.origin) else None

    async def show(self, ids: Sequence[DeliveryId]) -> list[Delivery]:
        """Those of these, whoever's they are, that Redis holds. Raises as `get` does."""
        by_partition: dict[int, list[int]] = {}
        for id in ids:
            if id.partition < self._partitions:
                by_partition.setdefault(id.partition, []).append(id.sequence)
        shown = [
            await self._show(partition, sequences[start : start + self.CHUNK])
            for partition, sequences in by_partition.items()
            for start in range(0, len(sequences), self.CHUNK)
        ]
        return [found for part in shown for found in part if found is not None]

    async def list_activity(
        self,
        activity_id: str,
        *,
        after: DeliveryId | None,
        limit: int,
        states: frozenset[DeliveryState],
        origins: Origins = None,
    ) -> list[Delivery]:
        """Deliveries of an activity that Redis holds, by id, past `after`; in any state if none is named."""
        found: list[Delivery] = []
        for partition, sequences in await self._index(activity_id, origins):
            if after is not None and partition < after.partition:
                continue
            if after is not None and partition == after.partition:
                sequences = [s for s in sequences if s > after.sequence]
            for start in range(0, len(sequences), self.CHUNK):
                if len(found) >= limit:
                    return found[:limit]
                shown = await self._show(partition, sequences[start : start + self.CHUNK])
                found += [
                    d
                    for d in shown
                    if d is not None and (not states or d.state in states) and _among(origins, d.origin)
                ]
        return found[:limit]

    async def count_activity(
        self, activity_id: str, origins: Origins = None
    ) -> tuple[int, Counter[DeliveryState]]:
        """How many deliveries of an activity Redis knows of, and of those that the archive does not hold yet,
        how many are in which state. Those in flight count as READY."""
        counts: Counter[DeliveryState] = Counter()
        total = 0
        for partition, sequences in await self._index(activity_id, origins):
            total += len(sequences)
            prefix = self._keys.partition(partition).prefix
            for start in range(0, len(sequences), self.CHUNK):
                answer = await self._link.run(self._recipients, prefix, sequences[start : start + self.CHUNK])
                items = iter(answer)
                for state, number in zip(items, items, strict=True):
                    counts[DeliveryState(state)] += number
        return total, counts

    async def body(self, id: DeliveryId, origins: Origins = None) -> bytes | None:
        """The exact bytes that are sent, while Redis holds them."""
        keys = self._keys.partition(id.partition)
        packed = await self._link.call("HGET", keys.deliveries, str(id.sequence))
        record = unpack(packed, id) if packed else None
        if record is None or isinstance(record, Finished):
            return None
        body: bytes | None
        body, origin = await self._link.call("HMGET", keys.message(record.message), "b", "o")
        return body if origin is not None and _among(origins, origin.decode()) else None

    async def _index(self, activity_id: str, origins: Origins) -> list[tuple[int, list[int]]]:
        """For each partition that knows the activity: the sequences of its deliveries, ascending."""
        key = activity_key(activity_id)
        answers = await asyncio.gather(
            *(self._link.call("GET", self._keys.partition(p).activity(key)) for p in range(self._partitions))
        )
        return [(p, list(sequences_of_activity(index, origins))) for p, index in enumerate(answers) if index]

    async def _show(self, partition: int, sequences: Sequence[int]) -> list[Delivery | None]:
        answer = await self._link.run(self._look, self._keys.partition(partition).prefix, sequences)
        return [
            self._view(DeliveryId(partition, sequence), found) if found else None
            for sequence, found in zip(sequences, answer, strict=True)
        ]

    @staticmethod
    def _view(id: DeliveryId, found: Sequence[Any]) -> Delivery:
        packed, flying, due, payload, fields = found
        record = unpack(packed, id)
        if isinstance(record, Finished):
            return outcome.unpack(payload, id, record.state, record.outcome)
        if record.state is DeliveryState.DEAD and payload:
            return outcome.unpack(payload, id, record.state, record.place)
        if record.spilled:
            # It waits in SQL: only its state and its origin are known here.
            unknown = replace(UNKNOWN, origin=record.inbox)
            return shown(id, replace(record, inbox=""), unknown, record.state)
        try:
            message = Message.unpack(b"", fields)
        except ValueError as error:
            raise QueueCorrupt(f"message of delivery {id}: {error}") from None
        due_ms = int(float(due)) if due else 0
        last = record.history[-1] if record.history else None
        waits = record.state is DeliveryState.SCHEDULED
        return replace(
            shown(id, record, message, DeliveryState.IN_FLIGHT if flying else record.state),
            reason=last.reason if last else None,
            status=last.status if last else 0,
            not_before_ms=due_ms if waits else 0,
            next_attempt_ms=due_ms,
        )
