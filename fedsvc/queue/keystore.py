"""Private keys, encrypted. Deliveries refer to them by name; nothing else in Redis holds one.

Keys of calls are stored by their fingerprint and forgotten some time after their last use; registered ones
(see `key_registry.py`) by a name that stays when they are replaced.
"""

from __future__ import annotations

import asyncio

from fedsvc.config import Settings
from fedsvc.domain.keys import KeyCipher, PrivateKey, from_storable, to_storable
from fedsvc.errors import ConfigurationError, KeyUnavailable
from fedsvc.queue.keys import Keys
from fedsvc.queue.link import Link


def key_cipher(settings: Settings) -> KeyCipher:
    """Raises ConfigurationError."""
    try:
        return KeyCipher.from_setting(settings.key_encryption_secret())
    except ValueError as error:
        raise ConfigurationError("FEDSVC_KEY_ENCRYPTION_KEYS", str(error)) from None


def key_lifetime_s(settings: Settings) -> int:
    """Seconds since its last use in a call for which a key is kept: longer than its deliveries live, and
    than their dead letters are looked at."""
    return settings.max_retry_duration + settings.task_ttl + 30 * 86_400


class KeyStore:
    def __init__(self, link: Link, keys: Keys, cipher: KeyCipher, *, lifetime_s: int) -> None:
        """`lifetime_s`: seconds since its last use in a call after which a key is forgotten; longer than
        any delivery or dead letter lives."""
        self._link = link
        self._keys = keys
        self._cipher = cipher
        self._lifetime_s = lifetime_s

    async def ensure(self, key: PrivateKey) -> None:
        """Make sure that Redis holds this key, encrypted under the first of the key encryption keys. One
        round trip when it does."""
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
