"""Lanes of hosts that are down for long, on their way to SQL and back: the queue's side.

    spillable ──▶ (SQL has it) ──▶ spill        what leaves Redis is in SQL before
    unspillable ──▶ (read from SQL) ──▶ unspill ──▶ (SQL forgets it)
    unknown ──▶ (read from SQL) ──▶ adopt
    away, and not in SQL ──▶ lost ──▶ (asked of the archive) ──▶ give_up

A batch counts once Redis has taken note of it, and comes back once: whatever breaks off in between leaves
rows in SQL that nobody asks for, which `stale` tells. Of every batch in SQL Redis knows that it is away, or
that it is not needed any more; of those that are `unknown` it has lost what it knew, and `adopt` tells it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from fedsvc.config import Settings
from fedsvc.domain.activity import activity_key
from fedsvc.domain.delivery import DeliveryId, DeliveryState
from fedsvc.domain.inbox import host_key, inbox_key
from fedsvc.domain.keys import is_registered
from fedsvc.domain.message import Message
from fedsvc.errors import QueueCorrupt
from fedsvc.queue.hosts import pack_terms
from fedsvc.queue.keys import Keys, PartitionKeys
from fedsvc.queue.link import Link
from fedsvc.queue.record import HEADER, inbox_in, unpack
from fedsvc.queue.script import Script
from fedsvc.queue.topology import Argument

#: microseconds after which a batch that Redis does not need has come back for good, or was given up
_GIVEN_UP_US: Final = 3_600_000_000


class SpillMessage(NamedTuple):
    number: int
    body: bytes
    fields: bytes
    identity: bytes
    #: group whose order its deliveries keep, hex; empty for none
    group: bytes


def stored(message: SpillMessage) -> bytes:
    """Group and fields as one value, which means nothing to SQL."""
    return bytes([len(message.group)]) + message.group + message.fields


def stored_fields(value: bytes) -> bytes:
    """The packed fields in what `stored` made."""
    return value[1 + value[0] :]


def stored_group(value: bytes) -> bytes:
    """The group in what `stored` made."""
    return value[1 : 1 + value[0]]


def _whole(
    number: int, body: bytes | None, fields: bytes | None, identity: bytes | None, group: bytes | None
) -> SpillMessage | None:
    if body is None or fields is None or identity is None:
        return None
    try:
        Message.unpack(b"", fields)
    except ValueError:
        return None
    return SpillMessage(number, body, fields, identity, group or b"")


def _is_readable(record: bytes, id: DeliveryId) -> bool:
    try:
        unpack(record, id)
    except QueueCorrupt:
        return False
    return True


class SpillBatch(NamedTuple):
    partition: int
    number: int
    host: str
    lane: int
    #: sequence and packed record of each, the oldest first
    deliveries: Sequence[tuple[int, bytes]]
    messages: Sequence[SpillMessage]


class Spill:
    """Every method raises QueueUnavailable."""

    #: deliveries in one batch, at most
    BATCH: Final = 500
    #: bytes of the bodies of one batch, about
    BYTES: Final = 8_388_608
    #: deliveries looked at in one step, about, by who looks for those that SQL has lost
    LOOKED_AT: Final = 1000
    #: how many must wait in a lane for it to be worth it
    WORTH: Final = 100

    def __init__(self, link: Link, keys: Keys, settings: Settings) -> None:
        self._link = link
        self._keys = keys
        self._terms = pack_terms(settings)
        self._after_ms = int(settings.spill_after * 1000)
        self._index_ttl_ms = (settings.max_retry_duration + settings.task_ttl) * 1000
        self._spillable = Script("spillable")
        self._spill = Script("spill")
        self._unspillable = Script("unspillable")
        self._unspill = Script("unspill")
        self._pass_over = Script("pass_over")
        self._adopt = Script("adopt")
        self._lost = Script("lost")
        self._give_up = Script("give_up")

    async def next_batch(self, partition: int) -> SpillBatch | None:
        """Deliveries that had better wait in SQL; None if there are none."""
        keys = self._keys.partition(partition)
        arguments: list[Argument] = [self._terms, self._after_ms, self.BATCH, self.WORTH]
        answer = await self._link.run(self._spillable, keys.prefix, arguments)
        if not answer:
            return None
        number, host, lane, *items = answer
        deliveries = [(int(s), bytes(r)) for s, r in zip(items[::2], items[1::2], strict=True)]
        readable, messages = await self._readable(partition, deliveries)
        if not readable:
            return None
        return SpillBatch(partition, int(number), host.decode(), lane, readable, messages)

    async def _readable(
        self, partition: int, deliveries: Sequence[tuple[int, bytes]]
    ) -> tuple[list[tuple[int, bytes]], list[SpillMessage]]:
        """Those of these that can be read, until their bodies are too large, and their messages. What cannot
        stays for a worker to find out what it is."""
        keys = self._keys.partition(partition)
        readable: list[tuple[int, bytes]] = []
        messages: dict[int, SpillMessage | None] = {}
        needed: dict[int, SpillMessage] = {}
        for start in range(0, len(deliveries), 50):
            chunk = deliveries[start : start + 50]
            new = {HEADER.unpack_from(record)[7] for _, record in chunk} - messages.keys()
            messages |= await self._messages(keys, new)
            for sequence, record in chunk:
                message = messages[HEADER.unpack_from(record)[7]]
                if message is not None and _is_readable(record, DeliveryId(partition, sequence)):
                    readable.append((sequence, record))
                    needed[message.number] = message
            if sum(len(m.body) for m in needed.values()) > self.BYTES:
                break
        return readable, list(needed.values())

    async def _messages(self, keys: PartitionKeys, numbers: Iterable[int]) -> dict[int, SpillMessage | None]:
        """None for one that is not whole."""
        numbers = list(numbers)
        found = await asyncio.gather(
            *(self._link.call("HMGET", keys.message(n), "b", "m", "i", "g") for n in numbers)
        )
        return {n: _whole(n, *fields) for n, fields in zip(numbers, found, strict=True)}

    async def commit(self, batch: SpillBatch) -> bool:
        """SQL has the batch: it leaves Redis. False if something has changed since it was shown."""
        prefix = self._keys.partition(batch.partition).prefix
        arguments: list[Argument] = [self._terms, batch.number, batch.host, batch.lane]
        for sequence, record in batch.deliveries:
            arguments += (sequence, inbox_key(inbox_in(record)))
        return bool(await self._link.run(self._spill, prefix, arguments))

    async def due(self, partition: int, few: int) -> list[int]:
        """Batches that should come back now: of hosts with less than `few` left in the lane."""
        keys = self._keys.partition(partition)
        if not await self._link.call("EXISTS", keys.spills):
            return []
        return [int(n) for n in await self._link.run(self._unspillable, keys.prefix, [self._terms, few])]

    async def restore(
        self,
        partition: int,
        number: int,
        deliveries: Sequence[tuple[int, bytes]],
        messages: Sequence[SpillMessage],
    ) -> int:
        """Bring a batch back. Returns how many deliveries, 0 if that was done before."""
        arguments: list[Argument] = [self._terms, number, len(messages)]
        for m in messages:
            message = Message.unpack(b"", m.fields)
            key_name = message.key_name if is_registered(message.key_name) else ""
            arguments += (m.number, m.body, m.fields, m.identity, m.group, key_name, message.origin)
        for sequence, record in deliveries:
            arguments += (sequence, record)
        prefix = self._keys.partition(partition).prefix
        return int(await self._link.run(self._unspill, prefix, arguments, durable=True))

    async def pass_over(self, partition: int, number: int) -> None:
        """What waits for its host waits for this batch no more. It can still come back."""
        prefix = self._keys.partition(partition).prefix
        await self._link.run(self._pass_over, prefix, [self._terms, number])

    async def adopt(
        self,
        partition: int,
        number: int,
        host: str,
        deliveries: Sequence[tuple[int, bytes]],
        messages: Sequence[SpillMessage],
        lost: Collection[int] = (),
    ) -> int:
        """Tell Redis of a batch that is unknown to it. `deliveries`: those that have not ended, the oldest
        first. `lost`: batches that SQL does not have, what waits in which may wait in this one. Returns how
        many of the deliveries do, or were not known either: they count as accepted, and are away."""
        arguments: list[Argument] = [
            self._terms, number, host, host_key(host), self._index_ttl_ms, " ".join(map(str, lost)),
            len(messages),
        ]  # fmt: skip
        origins = set()
        for m in messages:
            message = Message.unpack(b"", m.fields)
            key_name = message.key_name if is_registered(message.key_name) else ""
            activity = activity_key(message.activity_id).hex()
            arguments += (m.number, message.origin, key_name, m.group, activity, host_key(message.origin))
            origins.add(message.origin)
        for sequence, record in deliveries:
            arguments += (sequence, record, inbox_key(inbox_in(record)))
        if origins:
            await self._link.call("SADD", self._keys.origins, *sorted(origins))
        prefix = self._keys.partition(partition).prefix
        return int(await self._link.run(self._adopt, prefix, arguments, durable=True))

    async def lost(
        self, partition: int, batches: Collection[int]
    ) -> AsyncGenerator[list[tuple[int, int]], None]:
        """Deliveries that wait in batches which SQL does not have: sequence and batch of each, some at a
        time. Looks at all that the partition has."""
        prefix, cursor = self._keys.partition(partition).prefix, "0"
        while True:
            arguments: list[Argument] = [cursor, self.LOOKED_AT, *batches]
            after, *found = await self._link.run(self._lost, prefix, arguments)
            numbers = [int(n) for n in found]
            if numbers:
                yield list(zip(numbers[::2], numbers[1::2], strict=True))
            cursor = after.decode()
            if cursor == "0":
                return

    async def give_up(
        self,
        partition: int,
        deliveries: Sequence[tuple[int, int]],
        ended: Mapping[int, DeliveryState],
    ) -> int:
        """End such deliveries: those that have `ended` as the archive knows, those that nobody wants any
        more, and those whose time is over. Returns how many did."""
        arguments: list[Argument] = [self._terms]
        for sequence, batch in deliveries:
            arguments += (sequence, batch, int(ended.get(sequence, 0)))
        prefix = self._keys.partition(partition).prefix
        return int(await self._link.run(self._give_up, prefix, arguments, durable=True))

    async def unknown(self, partition: int, numbers: Sequence[int]) -> list[int]:
        """Which batches of those that SQL holds Redis knows nothing of, the oldest first."""
        away, spent = await asyncio.gather(self.away(partition), self._spent(partition))
        return sorted(set(numbers) - away - spent)

    async def stale(self, partition: int, numbers: Sequence[int]) -> list[int]:
        """Which batches of those that SQL holds nobody will ever ask for: what spilled or brought them back
        broke off long ago, or is done."""
        keys = self._keys.partition(partition)
        away, spent, last = await asyncio.gather(
            self.away(partition), self._spent(partition), self._link.call("GET", keys.sequence)
        )
        now_us = int(last or 0)
        return [n for n in numbers if n in spent - away and n < now_us - _GIVEN_UP_US]

    async def forget(self, partition: int, number: int) -> None:
        """SQL has forgotten a batch."""
        await self._link.call("SREM", self._keys.partition(partition).spent, number)

    async def away(self, partition: int) -> set[int]:
        """All batches that are in SQL, as Redis knows it."""
        return {int(n) for n in await self._link.call("HKEYS", self._keys.partition(partition).spills)}

    async def _spent(self, partition: int) -> set[int]:
        return {int(n) for n in await self._link.call("SMEMBERS", self._keys.partition(partition).spent)}
