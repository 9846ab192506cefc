"""The log of outcomes, as archive and watchers read it: in order, from a position that they keep."""

from __future__ import annotations

import struct
from contextlib import suppress
from typing import Any, Final, NamedTuple

import orjson

from fedsvc.config import Settings
from fedsvc.domain.delivery import Delivery, DeliveryId, DeliveryState
from fedsvc.domain.events import EventType, HostEvent
from fedsvc.errors import QueueCorrupt
from fedsvc.queue import outcome
from fedsvc.queue.keys import Keys
from fedsvc.queue.link import Link
from fedsvc.queue.script import Script

#: runs although Redis is full: archiving is what makes room
_LEAD: Final = """#!lua flags=allow-oom
local leader = redis.call('GET', KEYS[1])
if leader and leader ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
_RESIGN: Final = """#!lua flags=allow-oom
return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('DEL', KEYS[1]) or 0
"""


_STATES: Final = {b"%d" % state: state for state in DeliveryState}
#: how many times as many entries are read at once as just before, at most: those that come may hold more
_GROWTH: Final = 8


class Followed(NamedTuple):
    entries: list[Delivery | HostEvent]
    #: number of the last entry looked at
    last: int
    #: if not 0, the log up to this number is only in SQL, and `entries` are none
    archived: int
    #: the log ends before what was asked for: it is not the log that it was
    restarted: bool


class OutcomeLog:
    def __init__(self, link: Link, keys: Keys, settings: Settings) -> None:
        self._link = link
        self._keys = keys
        self._lease_ms = settings.lease_ms
        self._retention_ms = settings.outcome_retention * 1000
        self._archived = Script("archived")
        self._trim = Script("trim")
        self._bury = Script("bury")
        self._follow = Script("follow")
        self._dead_ms = settings.dead_letter_retention * 1000

    async def lead(self, partition: int, name: str) -> bool:
        """Whether `name` is the one that archives this partition, for one lease from now. Two at once would
        do no harm: archiving is idempotent."""
        key = self._keys.partition(partition).archiver
        return bool(await self._link.call("EVAL", _LEAD, 1, key, name, self._lease_ms))

    async def resign(self, partition: int, name: str) -> bool:
        """`name` archives this partition no more: another one need not wait for the lease to end. Whether it
        did."""
        key = self._keys.partition(partition).archiver
        return bool(await self._link.call("EVAL", _RESIGN, 1, key, name))

    async def position(self, partition: int) -> int:
        """Number of the last outcome that is archived; 0 for none."""
        return int(await self._link.call("GET", self._keys.partition(partition).archived) or 0)

    async def read(self, partition: int, after: int, limit: int) -> tuple[list[Delivery], int, int]:
        """Outcomes past number `after`, oldest first, `limit` of them or a few more: those that can be read,
        the number of the last one looked at, and how many that were."""
        entries, last, count = await self.read_all(partition, after, limit)
        return [entry for entry in entries if isinstance(entry, Delivery)], last, count

    async def read_all(
        self, partition: int, after: int, limit: int
    ) -> tuple[list[Delivery | HostEvent], int, int]:
        """As `read`, with the events."""
        name = self._keys.partition(partition).outcomes
        read: list[Delivery | HostEvent] = []
        last, count, wanted = after, 0, max(1, limit // outcome.MANY)
        while count < limit:
            entries = await self._link.call("XRANGE", name, f"{last + 1}-0", "+", "COUNT", wanted)
            some, last, many = _entries(partition, entries, last)
            read += some
            count += many
            if len(entries) < wanted:
                break
            # as many as hold the rest, if they hold as much as these
            wanted = max(1, min(_GROWTH * wanted, (limit - count) * wanted // max(many, 1)))
        return read, last, count

    async def newest(self, partition: int, limit: int) -> list[Delivery]:
        """The last `limit` outcomes, oldest first, of as many entries at most."""
        name = self._keys.partition(partition).outcomes
        found: list[Delivery] = []
        before, looked = "+", 0
        while len(found) < limit and looked < limit:
            wanted = 1 if looked == 0 else min(_GROWTH, limit - looked)
            entries = await self._link.call("XREVRANGE", name, before, "-", "COUNT", wanted)
            read, _, _ = _entries(partition, entries[::-1], 0)
            found = [entry for entry in read if isinstance(entry, Delivery)] + found
            looked += wanted
            if len(entries) < wanted:
                break
            before = "(" + entries[-1][0].decode()
        return found[-limit:]

    async def end(self, partition: int) -> int:
        """Number of the last entry there is or was; 0 for none."""
        prefix = self._keys.partition(partition).prefix
        return int((await self._link.run(self._follow, prefix, [-1, 0]))[1])

    async def follow(self, partition: int, after: int, limit: int) -> Followed:
        """The log past `after`, if Redis still has all of that: `limit` outcomes, or what the last entry has
        more."""
        prefix = self._keys.partition(partition).prefix
        trimmed, end, entries = await self._link.run(self._follow, prefix, [after, limit])
        read, last, _ = _entries(partition, entries, after)
        # A Redis that came back empty begins anew: what it gives has smaller numbers than what it had.
        return Followed(read, last, int(trimmed), int(end) < after)

    async def commit(self, partition: int, after: int, number: int, count: int) -> None:
        """The archive has committed what `read` gave: `count` outcomes past `after`, up to `number`."""
        await self._link.run(self._archived, self._keys.partition(partition).prefix, [number, after, count])

    async def trim(self, partition: int, limit: int, *, early: bool = False) -> int:
        """Forget outcomes that are archived and older than FEDSVC_OUTCOME_RETENTION; if `early`, all that are
        archived; `limit` of them or a few more. Returns how many."""
        prefix = self._keys.partition(partition).prefix
        return int(await self._link.run(self._trim, prefix, [0 if early else self._retention_ms, limit]))

    async def bury(self, partition: int, limit: int) -> int:
        """End dead letters that are older than FEDSVC_DEAD_LETTER_RETENTION. Returns how many."""
        prefix = self._keys.partition(partition).prefix
        return int(await self._link.run(self._bury, prefix, [self._dead_ms, limit]))


def _entries(partition: int, entries: Any, after: int) -> tuple[list[Delivery | HostEvent], int, int]:
    """Those past `after` that can be read, the number of the last, and how many they are."""
    read: list[Delivery | HostEvent] = []
    number, count = after, 0
    for name, fields in entries:
        number = int(name.split(b"-")[0])
        if fields[0] == b"many":
            count += _delivered(partition, number, fields, after, read)
            continue
        count += 1
        try:
            _, sequence, _, state, _, payload = fields
            if state == b"0":
                told = orjson.loads(payload)
                kind, host, detail = EventType[told["event"]], told["host"], told["detail"]
                if not isinstance(host, str) or not isinstance(detail, str):
                    raise ValueError("not an event")
                read.append(HostEvent(kind, partition, number, host, detail))
            else:
                id = DeliveryId(partition, int(sequence))
                read.append(outcome.unpack(payload, id, _STATES[state], number))
        except (QueueCorrupt, ValueError, KeyError, TypeError):
            continue  # not written by us; it must not block those behind it
    return read, number, count


def _delivered(
    partition: int, number: int, fields: list[bytes], after: int, read: list[Delivery | HostEvent]
) -> int:
    """Add to `read` what an entry has of several that were delivered, past `after`. Returns how many."""
    try:
        _, packed, _, payloads = fields
        heads = list(outcome.HEAD.iter_unpack(packed))
    except (ValueError, struct.error):
        heads, payloads = [], b""  # not written by us
    at, mine = 0, number - len(heads)
    for sequence, size in heads:
        mine += 1
        if mine > after:
            with suppress(QueueCorrupt, ValueError):
                payload = payloads[at : at + size]
                read.append(
                    outcome.unpack(payload, DeliveryId(partition, sequence), DeliveryState.DELIVERED, mine)
                )
        at += size
    return max(1, min(len(heads), number - after))
