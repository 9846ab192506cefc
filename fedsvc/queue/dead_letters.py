"""Dead letters: shown page by page, put back on the queue, or removed for good.

They stand in a stream of each partition, in the order in which they were given up. Nothing here looks at all
of them in one step.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from fedsvc.config import Settings
from fedsvc.domain.activity import activity_key
from fedsvc.domain.dead_letters import EVERYTHING, DeadLetterFilter
from fedsvc.domain.delivery import Delivery, DeliveryId, DeliveryState
from fedsvc.domain.inbox import host_key, partition_of
from fedsvc.errors import QueueCorrupt
from fedsvc.queue import outcome
from fedsvc.queue.keys import Keys
from fedsvc.queue.link import Link
from fedsvc.queue.reader import Origins
from fedsvc.queue.record import Record, unpack
from fedsvc.queue.script import Script
from fedsvc.queue.topology import Argument

#: microseconds in a millisecond
_US: Final = 1000


class Position(NamedTuple):
    """Of a dead letter among all, the newest first."""

    number: int
    partition: int


@dataclass(frozen=True, slots=True)
class Page:
    letters: list[Delivery]
    #: where to go on; None at the end. A page may be short, or have none, and not be the last.
    next: Position | None


@dataclass(frozen=True, slots=True)
class Batch:
    """Some dead letters of a partition, oldest first, and how far that was."""

    letters: list[Delivery]
    #: number of the last entry looked at; None if there is nothing left
    last: int | None


class DeadLetters:
    """Every method raises QueueUnavailable."""

    #: entries of a partition read at a time, of all or of the only one that there is need to look at
    CHUNK: Final = 64
    CHUNK_OF_ONE: Final = 512
    #: entries that a page looks at, at most, before it says where it is
    MOST_LOOKED_AT: Final = 10_000
    #: seconds for which it is remembered what an operation did
    REMEMBERED_S: Final = 7 * 86_400

    def __init__(self, link: Link, keys: Keys, settings: Settings) -> None:
        self._link = link
        self._keys = keys
        self._partitions = settings.partitions
        self._exhume = Script("exhume")
        self._lifetime_s = settings.max_retry_duration
        self._window = settings.ready_window
        self._keep_ms = (settings.max_retry_duration + settings.task_ttl) * 1000

    async def page(
        self,
        *,
        after: Position | None = None,
        limit: int,
        chosen: DeadLetterFilter = EVERYTHING,
        origins: Origins = None,
    ) -> Page:
        """Those that fit, newest first, past a position; of these origins only, or of all."""
        letters: list[Delivery] = []
        looked, at = 0, None
        async for at, letter in self._newest_first(after, chosen):
            looked += 1
            if letter is not None and chosen.takes(letter) and (origins is None or letter.origin in origins):
                letters.append(letter)
            if len(letters) >= limit or looked >= self.MOST_LOOKED_AT:
                return Page(letters, at)
        return Page(letters, None)

    async def bounds(self) -> list[int]:
        """Number of the newest dead letter of each partition, 0 for none."""
        newest = await asyncio.gather(
            *(
                self._link.call("XREVRANGE", self._keys.partition(p).dead, "+", "-", "COUNT", 1)
                for p in range(self._partitions)
            )
        )
        return [_number(entries[0]) if entries else 0 for entries in newest]

    async def batch(
        self, partition: int, *, after: int, until: int, limit: int, chosen: DeadLetterFilter
    ) -> Batch:
        """Those that fit of the next `limit` entries of a partition past number `after`, up to `until`."""
        if partition not in self._holding(chosen):
            return Batch([], None)
        first = max(after + 1, chosen.start_ms * _US)
        last = min(until, chosen.end_ms * _US - 1) if chosen.end_ms else until
        if first > last:
            return Batch([], None)
        entries = await self._link.call(
            "XRANGE", self._keys.partition(partition).dead, f"{first}-0", f"{last}-0", "COUNT", limit
        )
        if not entries:
            return Batch([], None)
        letters = [letter for entry in entries if (letter := _letter(partition, entry)) is not None]
        return Batch([letter for letter in letters if chosen.takes(letter)], _number(entries[-1]))

    async def find(self, ids: Iterable[DeliveryId]) -> list[Delivery]:
        """Those of these that are dead letters now."""
        by_partition: defaultdict[int, list[DeliveryId]] = defaultdict(list)
        for id in ids:
            if id.partition < self._partitions:
                by_partition[id.partition].append(id)
        found = await asyncio.gather(*(self._find(p, wanted) for p, wanted in by_partition.items()))
        return [letter for letters in found for letter in letters]

    async def move(
        self, what: str, letters: Sequence[Delivery], operation: str = "", *, not_after_ms: int = 0
    ) -> int | None:
        """`replay` or `purge` these, which must be of one partition. Returns how many it were: those that are
        dead letters no more, or anew, are passed over. None, and nothing was done, if it is later than that
        by Redis's clock (0: any time will do)."""
        if not letters:
            return 0
        arguments: list[Argument] = [
            what, self._lifetime_s, self._window, operation, self.REMEMBERED_S, self._keep_ms, not_after_ms,
        ]  # fmt: skip
        for letter in letters:
            arguments += (
                str(letter.id.sequence),
                str(letter.outcome),
                host_key(letter.host),
                activity_key(letter.activity_id).hex(),
            )
        prefix = self._keys.partition(letters[0].id.partition).prefix
        gone = int(await self._link.run(self._exhume, prefix, arguments, durable=True))
        return None if gone < 0 else gone

    async def moved(self, operation: str) -> int:
        """How many an operation has replayed or purged so far, exactly."""
        counts = await asyncio.gather(
            *(
                self._link.call("GET", self._keys.partition(p).operation(operation))
                for p in range(self._partitions)
            )
        )
        return sum(int(count) for count in counts if count)

    def _holding(self, chosen: DeadLetterFilter) -> Sequence[int]:
        """Partitions in which some may be that fit: all of a host's are in one."""
        if chosen.host:
            return (partition_of(chosen.host, self._partitions),)
        return range(self._partitions)

    async def _newest_first(
        self, after: Position | None, chosen: DeadLetterFilter
    ) -> AsyncIterator[tuple[Position, Delivery | None]]:
        """Entries of all partitions with their positions; None for one that is of another host, or was not
        written by us."""
        holding, host = self._holding(chosen), chosen.host.encode()
        size = self.CHUNK if len(holding) > 1 else self.CHUNK_OF_ONE
        oldest = f"{chosen.start_ms * _US}-0" if chosen.start_ms else "-"
        newest = f"({chosen.end_ms * _US}-0" if chosen.end_ms else "+"

        async def chunk(partition: int, bound: str) -> list[Any]:
            key = self._keys.partition(partition).dead
            found: list[Any] = await self._link.call("XREVRANGE", key, bound, oldest, "COUNT", size)
            found.reverse()  # taken from the end
            return found

        def first_bound(partition: int) -> str:
            if after is None or (chosen.end_ms and chosen.end_ms * _US <= after.number):
                return newest
            # of the same number, those of higher partitions came before
            return f"({after.number}-0" if partition >= after.partition else f"{after.number}-0"

        read = await asyncio.gather(*(chunk(p, first_bound(p)) for p in holding))
        chunks = dict(zip(holding, read, strict=True))
        heap = [(-_number(entries[-1]), -p) for p, entries in chunks.items() if entries]
        heapq.heapify(heap)
        while heap:
            number, partition = (-part for part in heapq.heappop(heap))
            entry = chunks[partition].pop()
            if not chunks[partition]:
                chunks[partition] = await chunk(partition, f"({entry[0].decode()}")
            if chunks[partition]:
                heapq.heappush(heap, (-_number(chunks[partition][-1]), -partition))
            # Its inbox names its host, in plain letters: to unpack those of others would be most of the work.
            theirs = host and not any(host in part for part in entry[1])
            yield Position(number, partition), None if theirs else _letter(partition, entry)

    async def _find(self, partition: int, ids: Sequence[DeliveryId]) -> list[Delivery]:
        keys = self._keys.partition(partition)
        packed = await self._link.call("HMGET", keys.deliveries, *(str(id.sequence) for id in ids))
        numbers = []
        for id, raw in zip(ids, packed, strict=True):
            try:
                record = unpack(raw, id) if raw else None
            except QueueCorrupt:
                continue
            if isinstance(record, Record) and record.state is DeliveryState.DEAD:
                numbers.append(record.place)
        entries = await asyncio.gather(
            *(self._link.call("XRANGE", keys.dead, f"{n}-0", f"{n}-0") for n in numbers)
        )
        letters = (_letter(partition, found[0]) for found in entries if found)
        return [letter for letter in letters if letter is not None]


def _number(entry: Any) -> int:
    return int(entry[0].split(b"-")[0])


def _letter(partition: int, entry: Any) -> Delivery | None:
    """None if it was not written by us: it must not hide the others."""
    try:
        _, sequence, _, payload = entry[1]
        id = DeliveryId(partition, int(sequence))
        return outcome.unpack(payload, id, DeliveryState.DEAD, _number(entry))
    except (QueueCorrupt, ValueError):
        return None
