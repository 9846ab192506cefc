"""All hosts in some order, page by page.

A list is made of a snapshot that is a second old at most, read in small steps, so that neither Redis nor this
process stands still for it however many hosts there are.
"""

from __future__ import annotations

import asyncio
import bisect
import struct
from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import suppress
from enum import IntEnum
from typing import Final, NamedTuple

from fedsvc.config import Settings
from fedsvc.queue.hosts import Circuit, HostState, circuit_of, is_host, state_of
from fedsvc.queue.keys import Keys
from fedsvc.queue.link import Link
from fedsvc.queue.script import Script
from fedsvc.queue.shared import Shared

#: of what hosts.py calls _HOST: latency, circuit, flags, failures, three lanes, pause
_PARTS: Final = struct.Struct("<7xf33xBBxH2xIIId")


class HostOrder(IntEnum):
    """Greatest first, then by name."""

    NAME = 0
    BACKLOG = 1
    FAILURES = 2
    LATENCY = 3


class Position(NamedTuple):
    """Where a host stands in an order."""

    #: negative; 0 in the order of names
    value: float
    host: str


class _Row(NamedTuple):
    host: str
    circuit: Circuit
    backlog: int
    failures: int
    latency_ms: float
    packed: bytes

    def position(self, order: HostOrder) -> Position:
        match order:
            case HostOrder.NAME:
                return Position(0, self.host)
            case HostOrder.BACKLOG:
                return Position(-self.backlog, self.host)
            case HostOrder.FAILURES:
                return Position(-self.failures, self.host)
            case HostOrder.LATENCY:
                return Position(-self.latency_ms, self.host)


class Listed(NamedTuple):
    hosts: list[HostState]
    #: of the last of them, if there are more
    last: Position | None


class Snapshot:
    """Hosts as they were at one time."""

    def __init__(self) -> None:
        self.now_ms = 0
        self._rows: dict[str, _Row] = {}
        self._pauses: dict[bytes, bytes] = {}
        self._policies: dict[bytes, bytes] = {}
        self._spilled: Counter[str] = Counter()
        self._sorted: dict[HostOrder, tuple[list[Position], list[_Row]]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def add(
        self,
        now_ms: int,
        hosts: list[bytes],
        pauses: list[bytes],
        policies: list[bytes],
        spills: list[bytes],
    ) -> None:
        """What one `survey` found; of a partition, that with the first cursor comes first."""
        self.now_ms = max(self.now_ms, now_ms)
        for told in spills:
            with suppress(ValueError):  # as lua/spills.lua passes over what is no batch
                host, _, _, many, *_ = told.decode().split(" ")
                self._spilled[host] += int(many)
        self._pauses.update(zip(pauses[::2], pauses[1::2], strict=True))
        self._policies.update(zip(policies[::2], policies[1::2], strict=True))
        for name, packed in zip(hosts[::2], hosts[1::2], strict=True):
            if not is_host(packed):
                continue
            latency, circuit, flags, failures, *lanes, pause = _PARTS.unpack_from(packed)
            host = name.decode()
            backlog = sum(lanes) + self._spilled[host]
            self._rows[host] = _Row(
                host, circuit_of(circuit, flags, pause, now_ms), backlog, failures, latency, packed
            )

    def page(
        self,
        order: HostOrder,
        *,
        after: Position | None,
        limit: int,
        states: Collection[Circuit] = (),
        name_contains: str = "",
    ) -> Listed:
        """At most `limit` hosts that stand past `after`; in any state if none is named."""
        if order not in self._sorted:
            rows = sorted(self._rows.values(), key=lambda row: row.position(order))
            self._sorted[order] = ([row.position(order) for row in rows], rows)
        positions, rows = self._sorted[order]
        found: list[_Row] = []
        for at in range(bisect.bisect_right(positions, after) if after else 0, len(rows)):
            row = rows[at]
            if (not states or row.circuit in states) and name_contains in row.host:
                if len(found) == limit:
                    return Listed([self._state(row) for row in found], found[-1].position(order))
                found.append(row)
        return Listed([self._state(row) for row in found], None)

    def circuits(self) -> Mapping[Circuit, int]:
        """How many hosts are in each state."""
        return Counter(row.circuit for row in self._rows.values())

    def lanes(self) -> int:
        """Hosts for which something waits."""
        return sum(row.backlog > 0 for row in self._rows.values())

    def _state(self, row: _Row) -> HostState:
        name = row.host.encode()
        reason, policy = self._pauses.get(name, b""), self._policies.get(name, b"")
        spilled = self._spilled.get(row.host, 0)
        return state_of(row.host, row.packed, reason, policy, self.now_ms, spilled)


class HostList:
    #: seconds for which a snapshot is good
    FRESH: Final = 1.0
    #: hosts read in one script, about
    CHUNK: Final = 500

    def __init__(self, link: Link, keys: Keys, settings: Settings) -> None:
        self._link = link
        self._keys = keys
        self._partitions = settings.partitions
        self._survey = Script("survey")
        self._shared = Shared(self._read, self.FRESH)

    def forget(self) -> None:
        """A host was changed from here: the next list must show it."""
        self._shared.forget()

    async def snapshot(self) -> Snapshot:
        """One that is fresh; whoever asks while it is read waits for the same. Raises QueueUnavailable."""
        return await self._shared.get()

    async def _read(self) -> Snapshot:
        snapshot = Snapshot()
        await asyncio.gather(*(self._read_partition(p, snapshot) for p in range(self._partitions)))
        return snapshot

    async def _read_partition(self, partition: int, snapshot: Snapshot) -> None:
        prefix, cursor = self._keys.partition(partition).prefix, b"0"
        while True:
            cursor, now, *found = await self._link.run(self._survey, prefix, [cursor, self.CHUNK])
            snapshot.add(int(now), *found)
            if cursor == b"0":
                return
