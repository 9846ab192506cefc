"""Looks after stored keys: encrypts them anew when the key encryption keys change, and ends deletions.

Any number of processes may do it at the same time: each step is a compare-and-set.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import structlog

from fedsvc.domain.keys import KeyCipher, registered_name
from fedsvc.errors import FedsvcError, KeyUnavailable
from fedsvc.queue.key_registry import KeyRegistry, position_of
from fedsvc.queue.keys import Keys
from fedsvc.queue.link import Link
from fedsvc.queue.script import Script

log = structlog.get_logger(__name__)


class KeyKeeper:
    #: seconds between two looks at deletions
    EVERY: Final = 5.0
    #: seconds between two looks at all keys
    ALL_EVERY: Final = 3600.0
    #: milliseconds that a deletion waits, longer than anybody believes a key to be usable that is not
    GRACE_MS: Final = 30_000
    #: keys looked at in one round trip, about
    _MANY: Final = 200
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
        looked = -self.ALL_EVERY
        while True:
            try:
                await self.end_deletions()
                if loop.time() - looked >= self.ALL_EVERY:
                    await self.encrypt_anew()
                    looked = loop.time()
            except FedsvcError as error:
                log.warning("keys_not_looked_after", problem=str(error))
            await asyncio.sleep(self.EVERY)

    async def end_deletions(self) -> int:
        """Delete what was to be deleted and nothing needs any more. Returns how many."""
        ended = 0
        for raw in await self._link.call("SRANDMEMBER", self._keys.leaving_keys, self._LEAVING):
            key_id = raw.decode()
            name = registered_name(key_id)
            slot = self._keys.private_key(name)
            stamp, now = await asyncio.gather(
                self._link.call("HGET", slot, "leaving"), self._link.call("TIME")
            )
            if stamp is not None:
                now_ms = int(now[0]) * 1000 + int(now[1]) // 1000
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
        for index, name_of in (
            (self._keys.registered_keys, lambda raw: registered_name(raw.partition(" ")[2])),
            (self._keys.key_names, lambda raw: raw),
        ):
            cursor: Any = 0
            scan = "ZSCAN" if index == self._keys.registered_keys else "SSCAN"
            while True:
                cursor, members = await self._link.call(scan, index, cursor, "COUNT", self._MANY)
                if isinstance(members, dict):
                    members = list(members)
                names = [
                    name_of((m[0] if isinstance(m, tuple) else m).decode(errors="replace")) for m in members
                ]
                changed += await self._look(names, index)
                if not int(cursor):
                    break
        if changed:
            log.info("keys_encrypted_anew", keys=changed)
        return changed

    async def _look(self, names: list[str], index: str) -> int:
        slots = [self._keys.private_key(name) for name in names]
        heads = await asyncio.gather(*(self._link.call("HGET", slot, "head") for slot in slots))
        changed = 0
        for name, slot, head in zip(names, slots, heads, strict=True):
            if head is None:
                if index == self._keys.key_names:  # its time was over
                    await self._link.call("SREM", index, name)
            elif self._cipher.needs_rotation(head):
                changed += await self._encrypt(name, slot)
        return changed

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
