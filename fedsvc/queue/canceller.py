"""Takes back deliveries that the application wants no more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from fedsvc.config import Settings
from fedsvc.domain.activity import activity_key
from fedsvc.domain.delivery import DeliveryId
from fedsvc.domain.inbox import partition_of
from fedsvc.domain.relations import group_of
from fedsvc.queue.keys import Keys
from fedsvc.queue.link import Link
from fedsvc.queue.reader import Origins, sequences_of_activity, sequences_of_group
from fedsvc.queue.record import FLAG_APART, FLAG_REPLACED, HEADER
from fedsvc.queue.script import Script


class Cancelled(NamedTuple):
    #: will not be sent
    cancelled: int
    #: are on their way, or in SQL; not tried again
    in_flight: int
    #: had ended already
    ended: int


class Canceller:
    """Every method raises QueueUnavailable; repeating it is safe. With `origins` it takes back only theirs,
    and tells nothing of others; None stands for all."""

    #: sequences in one script
    CHUNK: Final = 500

    def __init__(self, link: Link, keys: Keys, settings: Settings) -> None:
        self._link = link
        self._keys = keys
        self._partitions = settings.partitions
        self._cancel = Script("cancel")

    async def cancel(self, ids: Iterable[DeliveryId], *, origins: Origins = None) -> Cancelled:
        """These deliveries; what is unknown to the queue counts as ended."""
        by_partition: dict[int, list[int]] = {}
        for id in ids:
            by_partition.setdefault(id.partition, []).append(id.sequence)
        return _sum(
            await asyncio.gather(
                *(self._those(p, sequences, origins) for p, sequences in by_partition.items())
            )
        )

    async def cancel_activity(self, activity_id: str, *, origins: Origins = None) -> Cancelled:
        """All deliveries of an activity."""
        key = activity_key(activity_id)
        return await self._indexed(
            [self._keys.partition(p).activity(key) for p in range(self._partitions)],
            lambda index: sequences_of_activity(index, origins),
            origins,
        )

    async def cancel_ordered(self, key: str, *, origins: Origins = None) -> Cancelled:
        """All deliveries with an ordering key, which belongs to an origin."""
        origins = await self._all(origins)
        return _sum([await self._group(group_of(origin, key), origins) for origin in sorted(origins)])

    async def cancel_replaced(self, key: str, *, origins: Origins = None) -> Cancelled:
        """All deliveries with a supersede key, which belongs to an origin."""
        origins, total = await self._all(origins), Cancelled(0, 0, 0)
        for origin in sorted(origins):
            group = group_of(origin, key)
            # Among those that keep an order of this name, and those that keep another or none.
            for index, without in ((group, FLAG_APART), (f"{group}:apart", 0)):
                total = _sum([total, await self._group(index, origins, FLAG_REPLACED, without)])
        return total

    async def cancel_host(self, host: str, *, origins: Origins = None) -> Cancelled:
        """All deliveries to a host. Looks at every delivery of its partition, in small steps."""
        partition = partition_of(host, self._partitions)
        key = self._keys.partition(partition).deliveries
        total, cursor = Cancelled(0, 0, 0), b"0"
        while True:
            cursor, found = await self._link.call("HSCAN", key, cursor, "COUNT", self.CHUNK)
            done = cursor == b"0"
            sequences = [int(s) for s in found[::2]]
            total = _sum([total, await self._those(partition, sequences, origins, host, spilled=done)])
            if done:
                return total

    async def _all(self, origins: Origins) -> frozenset[str]:
        if origins is not None:
            return origins
        known = await self._link.call("SMEMBERS", self._keys.origins)
        return frozenset(name.decode() for name in known)

    async def _group(
        self, index: str, origins: frozenset[str], having: int = 0, without: int = 0
    ) -> Cancelled:
        """Of an index of a group, those that have this flag, if any, and not the other."""
        keys = [self._keys.partition(p).group(index) for p in range(self._partitions)]
        return await self._indexed(keys, sequences_of_group, origins, having, without)

    async def _indexed(
        self,
        keys: Sequence[str],
        read: Callable[[bytes], Iterable[int]],
        origins: Origins,
        having: int = 0,
        without: int = 0,
    ) -> Cancelled:
        indexes = await asyncio.gather(*(self._link.call("GET", key) for key in keys))
        found = [(p, list(read(index))) for p, index in enumerate(indexes) if index]
        if having:
            flagged = await asyncio.gather(*(self._flagged(p, some, having, without) for p, some in found))
            found = [(p, some) for (p, _), some in zip(found, flagged, strict=True)]
        return _sum(await asyncio.gather(*(self._those(p, sequences, origins) for p, sequences in found)))

    async def _flagged(
        self, partition: int, sequences: Sequence[int], having: int, without: int
    ) -> list[int]:
        """Of one that has ended there is nothing left to tell."""
        taken: list[int] = []
        key = self._keys.partition(partition).deliveries
        for start in range(0, len(sequences), self.CHUNK):
            chunk = sequences[start : start + self.CHUNK]
            for sequence, record in zip(chunk, await self._link.call("HMGET", key, *chunk), strict=True):
                flags = record[1] if record is not None and len(record) >= HEADER.size else having
                if flags & having and not flags & without:
                    taken.append(sequence)
        return taken

    async def _those(
        self,
        partition: int,
        sequences: Sequence[int],
        origins: Origins,
        host: str = "",
        *,
        spilled: bool = False,
    ) -> Cancelled:
        total = Cancelled(0, 0, 0)
        ours = "*" if origins is None else " ".join(sorted(origins))
        prefix = self._keys.partition(partition).prefix
        for start in range(0, len(sequences) or spilled, self.CHUNK):
            chunk = sequences[start : start + self.CHUNK]
            last = spilled and start + self.CHUNK >= len(sequences)
            cancelled, flying, ended, *unknown = await self._link.run(
                self._cancel, prefix, [ours, host, int(last), *chunk]
            )
            total = _sum([total, Cancelled(cancelled, flying, ended + len(unknown))])
        return total


def _sum(parts: Iterable[Cancelled]) -> Cancelled:
    return Cancelled(*(sum(column) for column in zip((0, 0, 0), *parts, strict=True)))
