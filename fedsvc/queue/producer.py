"""Puts deliveries on the queue.

A call is split by partition and into chunks; each part is one atomic script, idempotent under the call's
request id, so that a call that broke half-way is simply repeated.
"""

from __future__ import annotations

import asyncio
import hashlib
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from fedsvc.config import Settings
from fedsvc.domain.activity import activity_key
from fedsvc.domain.activity_types import type_code
from fedsvc.domain.delivery import DeliveryId, Priority
from fedsvc.domain.inbox import Inbox, host_key, inbox_key, partition_of
from fedsvc.domain.keys import is_registered
from fedsvc.domain.message import Message
from fedsvc.domain.relations import UNRELATED, Relation, Rule, group_of
from fedsvc.errors import RequestIdReused
from fedsvc.queue.keys import Keys
from fedsvc.queue.link import Link
from fedsvc.queue.record import FLAG_SHARED_INBOX
from fedsvc.queue.script import Script
from fedsvc.queue.topology import Argument

#: see `lua/enqueue.lua`
_NUMBERS: Final = struct.Struct(">BBBBQIQQQIH")


class Queued(NamedTuple):
    """One delivery of a call. A duplicate is the delivery that was accepted before."""

    id: DeliveryId
    duplicate: bool


class FannedOut(NamedTuple):
    accepted: int
    duplicates: int


@dataclass(slots=True)  # not frozen, as a message is not
class Terms:
    """On which terms deliveries are accepted. Times are milliseconds since the epoch, 0 for none."""

    priority: Priority
    not_before_ms: int = 0
    expire_ms: int = 0
    request_id: str = ""
    #: accept an activity to an inbox again although it was accepted within TASK_TTL
    allow_duplicate: bool = False
    #: the inboxes are shared inboxes of their hosts
    shared_inbox: bool = False
    #: to other activities: whose order it keeps, what it takes back
    relation: Relation = UNRELATED


class Place(NamedTuple):
    """An inbox with what the queue needs of it, computed once."""

    url: str
    host: str
    #: the URL as in a record, behind where its host is
    placed: bytes
    partition: int
    key: bytes
    host_key: bytes


class Producer:
    #: inboxes in one script; bounds how long Redis is busy with it (about 10 ms)
    CHUNK: Final = 2000
    #: origins that are remembered to be known
    ORIGINS: Final = 10_000
    #: seconds for which they are: Redis may have lost them since
    FRESH: Final = 1.0

    def __init__(self, link: Link, keys: Keys, settings: Settings) -> None:
        self._link = link
        self._keys = keys
        self._partitions = settings.partitions
        self._request_ttl_ms = settings.request_id_ttl * 1000
        self._index_ttl_ms = (settings.max_retry_duration + settings.task_ttl) * 1000
        self._max_retry_s = settings.max_retry_duration
        self._window = settings.ready_window
        self._duplicate_window_us = settings.task_ttl * 1_000_000
        self._enqueue = Script("enqueue")
        #: until when nobody tells Redis again (seconds, monotonic)
        self._origins: dict[str, float] = {}

    def place(self, inbox: Inbox) -> Place:
        partition = partition_of(inbox.host, self._partitions)
        url = inbox.url
        placed = bytes((url.index(inbox.host, 7), len(inbox.host))) + url.encode()
        return Place(url, inbox.host, placed, partition, inbox_key(url), host_key(inbox.host))

    async def enqueue(self, message: Message, inbox: Place, terms: Terms) -> Queued:
        """Accept one delivery. Returning means that Redis has it.

        Raises QueueUnavailable (nothing is known to be accepted; repeat it under the same request id)
        and RequestIdReused.
        """
        part = self._part(inbox.partition, message, [inbox], terms, "")
        if self._knows(message.origin):
            first, duplicates = await part
        else:  # in one round trip
            (first, duplicates), _ = await asyncio.gather(part, self._know(message.origin))
        if duplicates:
            return Queued(DeliveryId(inbox.partition, duplicates[0][1]), True)
        return Queued(DeliveryId(inbox.partition, first), False)

    async def fan_out(self, message: Message, inboxes: Sequence[Place], terms: Terms) -> FannedOut:
        """Accept one delivery for each of `inboxes`, which must be distinct. Errors as in `enqueue`."""
        await self._know(message.origin)
        answers = await asyncio.gather(
            *(
                self._part(partition, message, places, terms, part)
                for partition, places, part in self._parts(inboxes)
            ),
            return_exceptions=True,
        )
        duplicates = 0
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
            duplicates += len(answer[1])
        return FannedOut(len(inboxes) - duplicates, duplicates)

    async def known(
        self, message: Message, inboxes: Sequence[Place], terms: Terms, *, fan_out: bool
    ) -> list[bool]:
        """Of each part of a call, whether it was accepted under this request id; of one without a request id
        nothing. Raises QueueUnavailable, and RequestIdReused if what was accepted is another call's."""
        if not terms.request_id:
            return []
        parts = self._parts(inboxes) if fan_out else [(inboxes[0].partition, inboxes, "")]
        names = (
            self._keys.partition(partition).request(_request(message, terms, part))
            for partition, _, part in parts
        )
        found = await asyncio.gather(*(self._link.call("GETRANGE", name, 0, 7) for name in names))
        identity = message.identity()
        for accepted, (_, places, _) in zip(found, parts, strict=True):
            if accepted and accepted != self._fingerprint(identity, places, terms):
                raise RequestIdReused()
        return [bool(accepted) for accepted in found]

    def _parts(self, inboxes: Sequence[Place]) -> list[tuple[int, Sequence[Place], str]]:
        """Partition, inboxes and name of each part of a fan-out."""
        by_partition: dict[int, list[Place]] = {}
        for inbox in inboxes:
            by_partition.setdefault(inbox.partition, []).append(inbox)
        return [
            (partition, places[start : start + self.CHUNK], f"/{start}")
            for partition, places in by_partition.items()
            for start in range(0, len(places), self.CHUNK)
        ]

    def _knows(self, origin: str) -> bool:
        return self._origins.get(origin, 0.0) > time.monotonic()

    async def _know(self, origin: str) -> None:
        if not self._knows(origin):
            await self._link.call("SADD", self._keys.origins, origin)
            if len(self._origins) >= self.ORIGINS:
                self._origins.clear()
            self._origins[origin] = time.monotonic() + self.FRESH

    async def _part(
        self, partition: int, message: Message, inboxes: Sequence[Place], terms: Terms, part: str
    ) -> tuple[int, list[tuple[int, int]]]:
        """First new sequence, and (index, sequence) of each duplicate."""
        identity = message.identity()
        relation = terms.relation
        numbers = _NUMBERS.pack(
            terms.priority,
            type_code(message.activity_type),
            FLAG_SHARED_INBOX if terms.shared_inbox else 0,
            relation.rule,
            terms.not_before_ms,
            min(-(-terms.expire_ms // 1000), 0xFFFFFFFF),
            self._request_ttl_ms,
            self._index_ttl_ms,
            0 if terms.allow_duplicate else self._duplicate_window_us,
            self._max_retry_s,
            self._window,
        )
        args: list[Argument] = [
            numbers,
            activity_key(message.activity_id).hex(),
            identity,
            message.pack(),
            message.body,
            _request(message, terms, part) if terms.request_id else "",
            self._fingerprint(identity, inboxes, terms) if terms.request_id else b"",
            group_of(message.origin, relation.ordering_key),
            group_of(message.origin, relation.family),
            activity_key(relation.undoes).hex() if relation.rule is Rule.UNDONE else "",
            message.origin,
            message.key_name if is_registered(message.key_name) else "",
            host_key(message.origin),
        ]
        for inbox in inboxes:
            args += (inbox.placed, inbox.key, inbox.host_key)
        prefix = self._keys.partition(partition).prefix
        answer = await self._link.run(self._enqueue, prefix, args, durable=True)
        pairs_of = iter(answer[1:])
        return int(answer[0]), [
            (int(index), int(sequence)) for index, sequence in zip(pairs_of, pairs_of, strict=True)
        ]

    @staticmethod
    def _fingerprint(identity: bytes, inboxes: Sequence[Place], terms: Terms) -> bytes:
        """What must be equal for two calls to be the same call: all that makes a message (keys of order and
        supersession too), and the terms but for `shared_inbox`, which says nothing of what is sent or when.
        Not to be changed: it is held against what the version before has stored."""
        content = hashlib.blake2b(identity, digest_size=8)
        content.update(
            b"%d %d %d %d" % (terms.priority, terms.not_before_ms, terms.expire_ms, terms.allow_duplicate)
        )
        for inbox in inboxes:
            content.update(inbox.key)
        return content.digest()


def _request(message: Message, terms: Terms, part: str) -> str:
    """What a part of a call is remembered by."""
    return f"{message.origin}/{terms.request_id}{part}"
