"""Private keys, encrypted. Deliveries refer to them by name; nothing else in Redis holds one.

Keys of calls are stored by their fingerprint and forgotten some time after their last use; registered ones
(see `key_registry.py`) by a name that stays when they are replaced.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

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
    """Seconds since its last use in a call for which a key is kept: longer than its deliveries live, and
    than their dead letters are looked at."""
    return settings.max_retry_duration + settings.task_ttl + 30 * 86_400


class KeyStore:
    #: seconds for which it is taken for granted that Redis holds a key that it held
    FRESH: Final = 1.0
    #: keys of which that is remembered
    MOST_FRESH: Final = 10_000

    def __init__(
        self,
        link: Link,
        keys: Keys,
        cipher: KeyCipher,
        *,
        lifetime_s: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`lifetime_s`: seconds since its last use in a call after which a key is forgotten; longer than
        any delivery or dead letter lives. `clock`: seconds, monotonic."""
        self._clock = clock
        self._link = link
        self._keys = keys
        self._cipher = cipher
        self._lifetime_s = lifetime_s
        #: by fingerprint, until when nobody asks again (seconds, monotonic)
        self._fresh: dict[str, float] = {}
        #: by fingerprint, what is being ensured now
        self._ensuring: dict[str, asyncio.Future[None]] = {}

    async def ensure(self, key: PrivateKey) -> None:
        """Make sure that Redis holds this key, encrypted under the first of the key encryption keys. One
        round trip when it does, which all calls share that come meanwhile or soon after with the same key."""
        if self._fresh.get(key.fingerprint, 0.0) > self._clock():
            return
        ensuring = self._ensuring.get(key.fingerprint)
        if ensuring is None:
            ensuring = asyncio.ensure_future(self._ensure(key))
            self._ensuring[key.fingerprint] = ensuring
            ensuring.add_done_callback(lambda done: self._ensured(key.fingerprint, done))
        # One that is cancelled must not take it from the others.
        await asyncio.shield(ensuring)

    def _ensured(self, fingerprint: str, done: asyncio.Future[None]) -> None:
        del self._ensuring[fingerprint]
        # Whoever waited has the exception; if all have given up, nobody wants it.
        if done.cancelled() or done.exception() is not None:
            return
        if len(self._fresh) >= self.MOST_FRESH:
            self._fresh.clear()
        self._fresh[fingerprint] = self._clock() + self.FRESH

    async def _ensure(self, key: PrivateKey) -> None:
        name = self._keys.private_key(key.fingerprint)
        _, head = await asyncio.gather(
            self._link.call("EXPIRE", name, self._lifetime_s), self._link.call("HGET", name, "head")
        )
        if head is not None and not self._cipher.needs_rotation(head):
            return
        sealed = self._cipher.encrypt(to_storable(key), context=key.fingerprint.encode())
        # The head tells which key sealed it, without reading all of it at every call.
        head = sealed[: self._cipher.HEAD]
        await self._link.call("SADD", self._keys.key_names, key.fingerprint)
        await self._link.call("HSET", name, "sealed", sealed, "head", head, "algorithm", key.algorithm)
        await self._link.call("EXPIRE", name, self._lifetime_s)

    async def fetch(self, name: str) -> PrivateKey:
        """Raises KeyUnavailable if the key is unknown or cannot be opened, QueueUnavailable if Redis
        does not answer."""
        sealed = await self._link.call("HGET", self._keys.private_key(name), "sealed")
        if sealed is None:
            raise KeyUnavailable(f"key {name} is not stored")
        return from_storable(self._cipher.decrypt(sealed, context=name.encode()))
