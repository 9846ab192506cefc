"""Private keys, encrypted. Deliveries refer to them by name; nothing else in Redis holds one.

Keys of calls are stored by their fingerprint and forgotten some time after their last use; registered ones
(see `key_registry.py`) by a name that stays when they are replaced.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from fedsvc.config import Settings
from fedsvc.domain.keys import KeyCipher, PrivateKey, from_storable, to_storable
from fedsvc.errors import KeyUnavailable
from fedsvc.queue.keys import Keys
from fedsvc.queue.link import Link
from fedsvc.queue.watched_cipher import WatchedCipher


def key_cipher(settings: Settings, purpose: str = "") -> KeyCipher:
    """Follows the file that the keys are from, if they are from one. Raises ConfigurationError."""
    return WatchedCipher(settings, purpose)


def key_lifetime_s(settings: Settings) -> int:
    """Seconds for which a key is kept, from when the last deliveries may begin that were called for with it:
    longer than these live, can be replayed when they are dead letters, and live then."""
    return 2 * settings.max_retry_duration + settings.task_ttl + settings.dead_letter_retention


class _Ensured(NamedTuple):
    #: until when nobody asks again (seconds, monotonic)
    until: float
    #: for deliveries that begin so much later, at most
    later_s: int


class KeyStore:
    #: seconds for which it is taken for granted that Redis holds a key that it held
    FRESH: Final = 1.0
    #: keys of which that is remembered
    MOST_FRESH: Final = 10_000
    #: what is for later needs a key for so many seconds more, or a multiple, so that calls can share a look
    STEP_S: Final = 3600

    def __init__(
        self,
        link: Link,
        keys: Keys,
        cipher: KeyCipher,
        *,
        lifetime_s: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`lifetime_s`: see `key_lifetime_s`. `clock`: seconds, monotonic."""
        self._clock = clock
        self._link = link
        self._keys = keys
        self._cipher = cipher
        self._lifetime_s = lifetime_s
        self._fresh: dict[str, _Ensured] = {}
        #: what is being ensured now, and for how much later
        self._ensuring: dict[tuple[str, int], asyncio.Future[None]] = {}

    async def ensure(self, key: PrivateKey, in_s: float = 0.0) -> None:
        """Make sure that Redis holds this key, encrypted under the first of the key encryption keys, for
        deliveries that begin in `in_s` seconds. One round trip when it does, which all calls share
        that come meanwhile or soon after with the same key, and are for no later."""
        later_s = math.ceil(in_s / self.STEP_S) * self.STEP_S
        fresh = self._fresh.get(key.fingerprint)
        if fresh is not None and fresh.until > self._clock() and fresh.later_s >= later_s:
            return
        wanted = (key.fingerprint, later_s)
        ensuring = self._ensuring.get(wanted)
        if ensuring is None:
            ensuring = asyncio.ensure_future(self._ensure(key, later_s))
            self._ensuring[wanted] = ensuring
            ensuring.add_done_callback(lambda done: self._ensured(wanted, done))
        # One that is cancelled must not take it from the others.
        await asyncio.shield(ensuring)

    def _ensured(self, wanted: tuple[str, int], done: asyncio.Future[None]) -> None:
        del self._ensuring[wanted]
        # Whoever waited has the exception; if all have given up, nobody wants it.
        if done.cancelled() or done.exception() is not None:
            return
        if len(self._fresh) >= self.MOST_FRESH:
            self._fresh.clear()
        fingerprint, later_s = wanted
        self._fresh[fingerprint] = _Ensured(self._clock() + self.FRESH, later_s)

    async def _ensure(self, key: PrivateKey, later_s: int) -> None:
        name = self._keys.private_key(key.fingerprint)
        lifetime_s = self._lifetime_s + later_s
        # GT: what others need it for still counts.
        _, head = await asyncio.gather(
            self._link.call("EXPIRE", name, lifetime_s, "GT"), self._link.call("HGET", name, "head")
        )
        if head is not None and not self._cipher.needs_rotation(head):
            return
        sealed = self._cipher.encrypt(to_storable(key), context=key.fingerprint.encode())
        # The head tells which key sealed it, without reading all of it at every call.
        head = sealed[: self._cipher.HEAD]
        await self._link.call("SADD", self._keys.key_names, key.fingerprint)
        await self._link.call("HSET", name, "sealed", sealed, "head", head, "algorithm", key.algorithm)
        await self._link.call("EXPIRE", name, lifetime_s, "NX")
        await self._link.call("EXPIRE", name, lifetime_s, "GT")

    async def fetch(self, name: str) -> PrivateKey:
        """Raises KeyUnavailable if the key is unknown or cannot be opened, QueueUnavailable if Redis
        does not answer."""
        sealed = await self._link.call("HGET", self._keys.private_key(name), "sealed")
        if sealed is None:
            raise KeyUnavailable(f"key {name} is not stored")
        return from_storable(self._cipher.decrypt(sealed, context=name.encode()))
