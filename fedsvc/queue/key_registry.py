"""Registered keys: put once, named by id in calls, replaced or deleted while deliveries wait.

A registered key is stored under a name made of its id, and a message refers to that name: what waits is
signed with whatever is registered when it is sent. Every message that needs a registered key is counted in
its partition, so that a key is deleted only when none does.

    put ──▶ registered ──delete──▶ leaving (no new call may use it) ──▶ gone (nothing needs it) ──▶ deleted
                 ▲                    │
                 └────── put ─────────┘

A call that broke half-way is no new call: it is finished with a key that is leaving.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from fedsvc.config import Settings
from fedsvc.domain.inbox import origin_of
from fedsvc.domain.keys import KeyCipher, PrivateKey, registered_name, to_storable
from fedsvc.errors import KeyInUse, NotFound
from fedsvc.queue.keys import Keys
from fedsvc.queue.link import Link
from fedsvc.queue.script import Script

_FIELDS: Final = (
    "key_id", "algorithm", "bits", "fingerprint", "public", "created", "leaving", "gone",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class RegisteredKey:
    """What may be told of a registered key."""

    key_id: str
    origin: str
    algorithm: str
    bits: int
    fingerprint: str
    public_pem: str
    created_ms: int
    #: to be deleted once nothing needs it; no call may use it any more
    leaving: bool

    @property
    def name(self) -> str:
        return registered_name(self.key_id)


class KeyRegistry:
    """Every method raises QueueUnavailable; repeating it is safe."""

    #: seconds for which a key is taken to be registered as it was when last looked at
    FRESH: Final = 5.0
    _REMEMBERED: Final = 10_000

    def __init__(self, link: Link, keys: Keys, cipher: KeyCipher, settings: Settings) -> None:
        self._link = link
        self._keys = keys
        self._cipher = cipher
        self._partitions = settings.partitions
        self._put = Script("put_key")
        self._leave = Script("leave_key")
        self._seen: OrderedDict[str, tuple[float, RegisteredKey | None]] = OrderedDict()

    async def put(self, key_id: str, key: PrivateKey) -> RegisteredKey:
        """Register a key, or replace the one of this id; if that was to be deleted, it stays."""
        stored = await self._store("put", key_id, key)
        assert stored is not None
        return stored

    async def rotate(self, key_id: str, key: PrivateKey) -> RegisteredKey:
        """Replace a key. Raises NotFound if there is none."""
        stored = await self._store("rotate", key_id, key)
        if stored is None:
            raise _missing(key_id)
        return stored

    async def get(self, key_id: str) -> RegisteredKey:
        """Raises NotFound."""
        found = await self._read(key_id)
        if found is None:
            raise _missing(key_id)
        return found

    async def usable(self, key_id: str) -> RegisteredKey | None:
        """The key, if new deliveries may use it. What is said may be FRESH seconds old."""
        now = time.monotonic()
        known = self._seen.get(key_id)
        if known is None or now - known[0] > self.FRESH:
            known = (now, await self._read(key_id))
            self._seen[key_id] = known
            self._seen.move_to_end(key_id)
            while len(self._seen) > self._REMEMBERED:
                self._seen.popitem(last=False)
        found = known[1]
        return found if found is not None and not found.leaving else None

    async def finishes(self, key_id: str, parts: Sequence[bool]) -> bool:
        """Whether a call may be repeated although no new one may use the key. `parts`: which of them were
        accepted. If all were, the key is not needed; if some were, it must still be there, and then stays for
        long enough that the others are counted."""
        if not any(parts):
            return False
        if all(parts):
            return True
        slot = self._keys.private_key(registered_name(key_id))
        held = await self._link.run(self._leave, slot, ["hold", await self._link.now_ms()])
        return held is not None

    async def list(self, *, origin: str, after: str, limit: int) -> list[RegisteredKey]:
        """Those of an origin (all if empty), by origin and id, after the one with the position `after`."""
        first, last = "-", "+"
        if origin:
            first, last = f"[{origin} ", f"({origin}!"  # `!` is what follows the space
        if after:
            first = f"({after}"
        found: list[RegisteredKey] = []
        while len(found) < limit:
            members = await self._link.call(
                "ZRANGEBYLEX", self._keys.registered_keys, first, last, "LIMIT", 0, limit
            )
            ids = [member.decode(errors="replace").partition(" ")[2] for member in members]
            read = await asyncio.gather(*(self._read(id) for id in ids))
            found += [key for key in read if key is not None]
            if len(members) < limit:
                break
            first = f"({members[-1].decode(errors='replace')}"
        return found[:limit]

    async def delete(self, key_id: str, *, when_unused: bool, request_id: str = "") -> bool:
        """Delete a key; True if that comes later, once nothing needs it. Raises NotFound, also when it was
        deleted by a call of another name, and KeyInUse if deliveries need it and `when_unused` is not set."""
        name = registered_name(key_id)
        slot = self._keys.private_key(name)
        stamp = await self._link.run(self._leave, slot, ["mark", await self._link.now_ms(), request_id])
        if stamp is None:
            raise _missing(key_id)
        # Others go on to use it for as long as they believe that it is there, and are counted.
        self._seen.pop(key_id, None)
        uses = await self.uses(name)
        if uses and not when_unused:
            await self._link.run(self._leave, slot, ["unmark", stamp])
            raise KeyInUse(f"{uses} activities need key {key_id}: delete it when_unused, or cancel them")
        if not uses:
            await self._link.run(self._leave, slot, ["gone", stamp, request_id])
        await self._link.call("SADD", self._keys.leaving_keys, key_id)
        return uses > 0

    async def uses(self, name: str) -> int:
        """Messages that need the key of this name."""
        counts = await asyncio.gather(
            *(
                self._link.call("HGET", self._keys.partition(n).key_uses, name)
                for n in range(self._partitions)
            )
        )
        return sum(int(n) for n in counts if n)

    async def _store(self, how: str, key_id: str, key: PrivateKey) -> RegisteredKey | None:
        name = registered_name(key_id)
        sealed = self._cipher.encrypt(to_storable(key), context=name.encode())
        fields: dict[str, str | int | bytes] = {
            "sealed": sealed,
            "head": sealed[: self._cipher.HEAD],
            "key_id": key_id,
            "algorithm": key.algorithm,
            "bits": key.bits,
            "fingerprint": key.fingerprint,
            "public": key.public_pem,
        }
        arguments = [part for pair in fields.items() for part in pair]
        answer = await self._link.run(
            self._put,
            self._keys.private_key(name),
            [how, await self._link.now_ms(), *arguments],
            durable=True,
        )
        self._seen.pop(key_id, None)
        if answer is None:
            return None
        await self._link.call("ZADD", self._keys.registered_keys, 0, position_of(key_id))
        created, leaving = map(int, answer)
        return RegisteredKey(
            key_id=key_id,
            origin=origin_of(key_id),
            algorithm=key.algorithm,
            bits=key.bits,
            fingerprint=key.fingerprint,
            public_pem=key.public_pem,
            created_ms=created,
            leaving=bool(leaving),
        )

    async def _read(self, key_id: str) -> RegisteredKey | None:
        """None if there is none, or nothing but its shadow."""
        slot = self._keys.private_key(registered_name(key_id))
        answer: list[Any] = await self._link.call("HMGET", slot, *_FIELDS)
        id, algorithm, bits, fingerprint, public, created, leaving, gone = answer
        if id is None or gone is not None:
            return None
        return RegisteredKey(
            key_id=key_id,
            origin=origin_of(key_id),
            algorithm=algorithm.decode(),
            bits=int(bits),
            fingerprint=fingerprint.decode(),
            public_pem=public.decode(),
            created_ms=int(created),
            leaving=leaving is not None,
        )


def position_of(key_id: str) -> str:
    """Of a key in the list of all."""
    return f"{origin_of(key_id)} {key_id}"


def _missing(key_id: str) -> NotFound:
    return NotFound(f"there is no key {key_id}")
