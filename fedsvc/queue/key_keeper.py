"""Looks after stored keys: encrypts them anew when the key encryption keys change, and ends deletions.

Any number of processes may do it at the same time: each step is a compare-and-set.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final, NamedTuple

import structlog

from fedsvc.domain.keys import KeyCipher, registered_name
from fedsvc.errors import FedsvcError, KeyUnavailable
from fedsvc.queue.key_registry import KeyRegistry, position_of
from fedsvc.queue.keys import Keys
from fedsvc.queue.link import Link
from fedsvc.queue.script import Script

log = structlog.get_logger(__name__)


class Census(NamedTuple):
    """Stored keys, by the key encryption key that they are under."""

    #: the first
    current: int
    #: another that is configured: they are encrypted anew within the hour
    other: int
    #: one that is not: nothing can be signed with them
    closed: int


class KeyKeeper:
    #: seconds between two looks at deletions
    EVERY: Final = 5.0
    #: seconds between two looks at all keys, unless another key is to encrypt
    ALL_EVERY: Final = 3600.0
    #: milliseconds that a deletion waits, longer than anybody believes a key to be usable that is not
    GRACE_MS: Final = 30_000
    #: keys looked at in one round trip, about
    _MANY: Final = 200
    #: keys that a census counts, about
    MOST_COUNTED: Final = 100_000
    #: leaving keys looked at in one round
    _LEAVING: Final = 1000

    def __init__(self, link: Link, keys: Keys, cipher: KeyCipher, registry: KeyRegistry) -> None:
        self._link = link
        self._keys = keys
        self._cipher = cipher
        self._registry = registry
        self._leave = Script("leave_key")
        self._reseal = Script("reseal_key")

    async def run(self) -> None:
        """For ever. What cannot be done now is done later."""
        loop = asyncio.get_running_loop()
        looked, current, away = -self.ALL_EVERY, b"", False
        while True:
            try:
                await self.end_deletions()
                if loop.time() - looked >= self.ALL_EVERY or self._cipher.current != current:
                    current = self._cipher.current
                    await self.encrypt_anew()
                    looked = loop.time()
                away = False
            except FedsvcError as error:
                if not away:
                    away = True
                    log.warning("keys_not_looked_after", problem=str(error))
            await asyncio.sleep(self.EVERY)

    async def end_deletions(self) -> int:
        """Delete what was to be deleted and nothing needs any more. Returns how many."""
        ended = 0
        for raw in await self._link.call("SRANDMEMBER", self._keys.leaving_keys, self._LEAVING):
            key_id = raw.decode()
            name = registered_name(key_id)
            slot = self._keys.private_key(name)
            stamp, now_ms = await asyncio.gather(
                self._link.call("HGET", slot, "leaving"), self._link.now_ms()
            )
            if stamp is not None:
                if now_ms - int(stamp) < self.GRACE_MS or await self._registry.uses(name):
                    continue
                if await self._link.run(self._leave, slot, ["delete", stamp]) is None:
                    continue  # it is wanted again
                ended += 1
                log.info("key_deleted", key_id=key_id)
            await self._link.call("SREM", self._keys.leaving_keys, key_id)
            if not await self._link.call("EXISTS", slot):
                await self._link.call("ZREM", self._keys.registered_keys, position_of(key_id))
                if await self._link.call("EXISTS", slot):  # registered again in that moment
                    await self._link.call("ZADD", self._keys.registered_keys, 0, position_of(key_id))
        return ended

    async def encrypt_anew(self) -> int:
        """Encrypt every key under the first of the key encryption keys that is under another. Returns how
        many were; those that no key opens are logged and left alone."""
        changed = 0
        async for index, names in self._names():
            heads = await self._heads(names)
            for name, head in zip(names, heads, strict=True):
                if head is None:
                    if index == self._keys.key_names:  # its time was over
                        await self._link.call("SREM", index, name)
                elif self._cipher.needs_rotation(head):
                    changed += await self._encrypt(name, self._keys.private_key(name))
        if changed:
            log.info("keys_encrypted_anew", keys=changed)
        return changed

    async def census(self) -> Census:
        """How stored keys are encrypted; of many, of the first MOST_COUNTED."""
        current = other = closed = 0
        async for _, names in self._names():
            for head in await self._heads(names):
                if head is None:
                    continue
                if not self._cipher.knows(head):
                    closed += 1
                elif self._cipher.needs_rotation(head):
                    other += 1
                else:
                    current += 1
            if current + other + closed >= self.MOST_COUNTED:
                break
        return Census(current, other, closed)

    async def _names(self) -> AsyncIterator[tuple[str, list[str]]]:
        """Names of all stored keys, some at a time, with the index that they are from. One may come twice."""
        for index, scan in ((self._keys.registered_keys, "ZSCAN"), (self._keys.key_names, "SSCAN")):
            cursor: Any = 0
            while True:
                cursor, members = await self._link.call(scan, index, cursor, "COUNT", self._MANY)
                found = [(m[0] if isinstance(m, tuple) else m).decode(errors="replace") for m in members]
                if index == self._keys.registered_keys:
                    found = [registered_name(position.partition(" ")[2]) for position in found]
                yield index, found
                if not int(cursor):
                    break

    async def _heads(self, names: list[str]) -> list[bytes | None]:
        slots = (self._keys.private_key(name) for name in names)
        return list(await asyncio.gather(*(self._link.call("HGET", slot, "head") for slot in slots)))

    async def _encrypt(self, name: str, slot: str) -> int:
        sealed = await self._link.call("HGET", slot, "sealed")
        if sealed is None:
            return 0
        context = name.encode()
        try:
            fresh = self._cipher.encrypt(self._cipher.decrypt(sealed, context=context), context=context)
        except KeyUnavailable as error:
            log.error("key_cannot_be_opened", key=name, problem=str(error))
            return 0
        head = fresh[: self._cipher.HEAD]
        return int(await self._link.run(self._reseal, slot, [sealed, fresh, head]))
