"""Registered keys of a queue, and the process that keeps them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from fedsvc.domain.keys import KeyCipher, PrivateKey, load_private_key, registered_name
from fedsvc.domain.message import Message
from fedsvc.queue.key_keeper import KeyKeeper
from fedsvc.queue.key_registry import KeyRegistry
from fedsvc.queue.keystore import KeyStore
from fedsvc.queue.producer import Terms
from servers.queue import HOUR_MS, Queue, open_queue

ADA = "https://me.example/u/ada#main-key"


def fresh() -> PrivateKey:
    key = ed25519.Ed25519PrivateKey.generate()
    return load_private_key(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


class KeyRing:
    def __init__(self, queue: Queue, cipher: KeyCipher) -> None:
        self.queue = queue
        self.open(cipher)

    def open(self, cipher: KeyCipher) -> None:
        """As a process does that starts with these key encryption keys."""
        queue = self.queue
        self.registry = KeyRegistry(queue.link, queue.keys, cipher, queue.settings)
        self.keeper = KeyKeeper(queue.link, queue.keys, cipher, self.registry)
        self.store = KeyStore(queue.link, queue.keys, cipher, lifetime_s=HOUR_MS)

    def message(self, activity: str, key_id: str = ADA) -> Message:
        return replace(self.queue.message(activity), key_id=key_id, key_name=registered_name(key_id))

    async def enqueue(self, activity: str, *inboxes: int) -> None:
        places = [self.queue.place(n) for n in inboxes or (0,)]
        await self.queue.producer.fan_out(self.message(activity), places, Terms(Queue.BULK))

    async def uses(self, key_id: str = ADA) -> int:
        return await self.registry.uses(registered_name(key_id))

    async def head(self, key_id: str = ADA) -> bytes:
        """Of the stored key: tells under which key encryption key it is."""
        slot = self.queue.keys.private_key(registered_name(key_id))
        return bytes(await self.queue.link.call("HGET", slot, "head"))

    async def there(self, key_id: str = ADA) -> bool:
        """Whether anything of the key is left in Redis."""
        return bool(
            await self.queue.link.call("EXISTS", self.queue.keys.private_key(registered_name(key_id)))
        )


@asynccontextmanager
async def key_ring(url: str, namespace: str) -> AsyncIterator[KeyRing]:
    """With a key encryption key that nobody else has."""
    async with open_queue(url, namespace) as queue:
        yield KeyRing(queue, KeyCipher.from_setting(KeyCipher.generate()))
