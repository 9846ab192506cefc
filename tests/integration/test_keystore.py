"""Private keys that calls bring, in Redis: encrypted, and there as long as they are used."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest
from servers.queue import Queue

from fedsvc.domain.keys import KeyCipher, load_private_key, to_storable
from fedsvc.errors import KeyUnavailable
from fedsvc.queue.keystore import KeyStore


async def test_a_key_is_stored_encrypted_and_stored_again_when_it_is_lost(queue: Queue, rsa_pem: str) -> None:
    key = load_private_key(rsa_pem)
    cipher, clock = KeyCipher.from_setting(KeyCipher.generate()), count(step=KeyStore.FRESH)
    store = KeyStore(queue.link, queue.keys, cipher, lifetime_s=100, clock=lambda: next(clock))
    name = queue.keys.private_key(key.fingerprint)
    with pytest.raises(KeyUnavailable):
        await store.fetch(key.fingerprint)
    for _ in range(2):
        await store.ensure(key)
        stored: Any = b"".join(await queue.link.call("HGETALL", name))
        der = to_storable(key)
        assert b"PRIVATE" not in stored
        # no stretch of the key, as bytes or as text of a PEM
        assert not any(der[at : at + 8] in stored for at in range(len(der) - 8))
        assert not any(line.encode() in stored for line in rsa_pem.splitlines())
        assert (await store.fetch(key.fingerprint)).sign(b"x") == key.sign(b"x")
        await queue.empty()
    await store.ensure(key)
    stranger = KeyStore(queue.link, queue.keys, KeyCipher.from_setting(KeyCipher.generate()), lifetime_s=1)
    with pytest.raises(KeyUnavailable):
        await stranger.fetch(key.fingerprint)


async def test_a_key_lives_on_while_it_is_used_and_is_not_written_again(queue: Queue, rsa_pem: str) -> None:
    key = load_private_key(rsa_pem)
    cipher, now = KeyCipher.from_setting(KeyCipher.generate()), 0.0
    store = KeyStore(queue.link, queue.keys, cipher, lifetime_s=100, clock=lambda: now)
    name = queue.keys.private_key(key.fingerprint)
    await store.ensure(key)
    sealed = await queue.link.call("HGET", name, "sealed")
    await queue.link.call("EXPIRE", name, 10)
    await store.ensure(key)
    assert await queue.link.call("TTL", name) <= 10, "a moment ago it was there"
    now += KeyStore.FRESH
    await store.ensure(key)
    assert await queue.link.call("TTL", name) > 90
    assert await queue.link.call("HGET", name, "sealed") == sealed


async def test_a_key_is_there_as_long_as_what_is_for_later_needs_it(queue: Queue, rsa_pem: str) -> None:
    key, month = load_private_key(rsa_pem), 30 * 86_400
    cipher, now = KeyCipher.from_setting(KeyCipher.generate()), 0.0
    store = KeyStore(queue.link, queue.keys, cipher, lifetime_s=100, clock=lambda: now)
    name = queue.keys.private_key(key.fingerprint)
    await store.ensure(key)
    await store.ensure(key, month)
    assert await queue.link.call("TTL", name) > month, "that it was there a moment ago says nothing of then"
    await store.ensure(key, month / 2)
    now += KeyStore.FRESH
    await store.ensure(key)
    assert await queue.link.call("TTL", name) > month, "what is for now takes nothing from others"
    await queue.empty()
    await store.ensure(key, 2 * month)
    assert await queue.link.call("TTL", name) > 2 * month


async def test_a_key_is_stored_anew_under_a_new_key_encryption_key(queue: Queue, rsa_pem: str) -> None:
    key = load_private_key(rsa_pem)
    former, new = KeyCipher.generate(), KeyCipher.generate()

    def store_with(*secrets: str) -> KeyStore:
        return KeyStore(queue.link, queue.keys, KeyCipher.from_setting(",".join(secrets)), lifetime_s=100)

    await store_with(former).ensure(key)
    await store_with(new, former).fetch(key.fingerprint)
    await store_with(new, former).ensure(key)
    assert (await store_with(new).fetch(key.fingerprint)).fingerprint == key.fingerprint
    # the one that sealed it is gone for good: the next call brings the private key back
    another = KeyCipher.generate()
    with pytest.raises(KeyUnavailable):
        await store_with(another).fetch(key.fingerprint)
    await store_with(another).ensure(key)
    assert (await store_with(another).fetch(key.fingerprint)).fingerprint == key.fingerprint
