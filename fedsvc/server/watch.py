"""WatchOutcomes: the log of all partitions as one stream that can be resumed.

A watcher reads at its own pace, and nothing is kept for it here: its cursor, a number for each partition, is
all there is. What Redis has forgotten is read from the archive.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import struct
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Final

from fedsvc.archive.archived_log import ArchivedLog
from fedsvc.domain.delivery import Delivery, DeliveryState
from fedsvc.domain.events import EventType, HostEvent
from fedsvc.domain.inbox import origin_of
from fedsvc.errors import InvalidInput, Stopping
from fedsvc.queue.outcomes import OutcomeLog
from fedsvc.server.caller import caller
from fedsvc.server.places import Places

_VERSION: Final = 1
_HEAD: Final = struct.Struct(">BH")
#: seconds after which to ask again for a place
_RETRY_AFTER_S: Final = 5


@dataclass(slots=True)
class Cursor:
    """How far each partition was read."""

    positions: list[int]

    @classmethod
    def parse(cls, text: str, partitions: int) -> Cursor:
        """Raises InvalidInput."""
        try:
            raw = base64.b64decode(text, altchars=b"-_", validate=True)
            version, count = _HEAD.unpack_from(raw)
            positions = struct.unpack(f">{count}Q", raw[_HEAD.size :])
        except (binascii.Error, ValueError, struct.error):
            raise InvalidInput("cursor", "is not one that a response has given") from None
        if version != _VERSION or count != partitions or max(positions) >= 2**63:
            raise InvalidInput("cursor", "is not one of this queue")
        return cls(list(positions))

    def __str__(self) -> str:
        count = len(self.positions)
        raw = _HEAD.pack(_VERSION, count) + struct.pack(f">{count}Q", *self.positions)
        return base64.b64encode(raw, altchars=b"-_").decode()


@dataclass(frozen=True, slots=True)
class Filter:
    """Empty sets take everything."""

    #: None stands for outcomes of deliveries
    events: frozenset[EventType | None] = frozenset()
    states: frozenset[DeliveryState] = frozenset()
    activity_types: frozenset[str] = frozenset()
    hosts: frozenset[str] = frozenset()
    #: whose outcomes and keys the caller may see; all if None
    origins: frozenset[str] | None = None

    def takes(self, entry: Delivery | HostEvent) -> bool:
        if self.hosts and entry.host not in self.hosts:
            return False
        if isinstance(entry, HostEvent):
            # What hosts do concerns all, but keys are somebody's.
            theirs = entry.type is not EventType.KEY_REJECTED or self._among(entry.detail)
            return theirs and (not self.events or entry.type in self.events)
        return (
            (not self.events or None in self.events)
            and (not self.states or entry.state in self.states)
            and (not self.activity_types or entry.activity_type in self.activity_types)
            and (self.origins is None or entry.origin in self.origins)
        )

    def _among(self, key_id: str) -> bool:
        if self.origins is None:
            return True
        try:
            return origin_of(key_id) in self.origins
        except InvalidInput:
            return False


@dataclass(frozen=True, slots=True)
class Seen:
    """One entry, or none as a sign of life. `cursor` is valid once the entry was handled."""

    cursor: str
    entry: Delivery | HostEvent | None = None


@dataclass(slots=True)
class Watchers:
    """All watchers of this process."""

    partitions: int
    places: Places
    outcomes: OutcomeLog
    archive: ArchivedLog
    stopping: asyncio.Event
    #: seconds: between two looks when there was nothing new, and between two signs of life
    pause: float = 0.25
    heartbeat: float = 10.0
    #: outcomes of one partition read at a time; some hundred more if they are one entry of the log
    limit: int = 200

    async def watch(self, cursor: str, takes: Filter) -> AsyncGenerator[Seen, None]:
        """Entries from a cursor on, each at least once.

        Raises InvalidInput, Overloaded if there are too many watchers, QueueUnavailable, ArchiveUnavailable,
        Stopping; after the last three the caller resumes from its cursor, after Stopping at another server.
        """
        partitions = range(self.partitions)
        at = Cursor.parse(cursor, len(partitions)) if cursor else None
        with self.places.taken(caller(), _RETRY_AFTER_S):
            if at is None:
                ends = await asyncio.gather(*(self.outcomes.end(p) for p in partitions))
                at = Cursor([int(end) for end in ends])
                yield Seen(str(at))
            loop = asyncio.get_running_loop()
            told = loop.time()
            while not self.stopping.is_set():
                batches = await asyncio.gather(*(self._read(p, at.positions[p]) for p in partitions))
                entries = sorted((e for batch, _ in batches for e in batch), key=_number)
                for entry in entries:
                    at.positions[_partition(entry)] = _number(entry)
                    if takes.takes(entry):
                        yield Seen(str(at), entry)
                        told = loop.time()
                for partition, (_, last) in zip(partitions, batches, strict=True):
                    at.positions[partition] = last
                if loop.time() - told >= self.heartbeat:
                    yield Seen(str(at))
                    told = loop.time()
                if not entries:
                    await self._wait(min(self.pause, self.heartbeat))
            raise Stopping("this server stops; go on from the cursor at another")

    async def _read(self, partition: int, after: int) -> tuple[list[Delivery | HostEvent], int]:
        """What comes next in a partition, and the number up to which that is all."""
        followed = await self.outcomes.follow(partition, after, self.limit)
        if followed.archived:
            return await self.archive.read(partition, after, followed.archived, self.limit)
        if followed.restarted and not followed.entries:
            # Redis has come back with less than it had: all of it is news to whoever was ahead of it.
            return [], 0
        return followed.entries, followed.last

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self.stopping.wait()
        except TimeoutError:
            pass


def _number(entry: Delivery | HostEvent) -> int:
    return entry.number if isinstance(entry, HostEvent) else entry.outcome


def _partition(entry: Delivery | HostEvent) -> int:
    return entry.partition if isinstance(entry, HostEvent) else entry.id.partition
