"""What a worker process fetches once and uses for many deliveries: messages and parsed keys."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

from fedsvc.domain.keys import PrivateKey, is_registered
from fedsvc.domain.message import Message
from fedsvc.queue.consumer import Consumer
from fedsvc.queue.keystore import KeyStore
from fedsvc.worker.metrics import KEY_FETCHES, LOOKUPS

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class SharedFetch(Generic[K, V]):
    """A bounded cache that fetches what is missing, once, however many ask for it at the same time."""

    def __init__(self, fetch: Callable[[K], Awaitable[V]], weigh: Callable[[V], int], limit: int) -> None:
        self._fetch = fetch
        self._weigh = weigh
        self._limit = limit
        self._weight = 0
        self._held: OrderedDict[K, V] = OrderedDict()
        self._coming: dict[K, asyncio.Future[V]] = {}

    def held(self, key: K) -> V | None:
        """What is here already: for who calls so often that a coroutine each time would tell."""
        held = self._held.get(key)
        if held is not None:
            self._held.move_to_end(key)
        return held

    async def get(self, key: K) -> V:
        """Raises what fetching raises; a failure is not kept."""
        held = self.held(key)
        if held is not None:
            return held
        coming = self._coming.get(key)
        if coming is None:
            coming = asyncio.ensure_future(self._fetch(key))
            self._coming[key] = coming
            coming.add_done_callback(lambda done: self._arrived(key, done))
        # Others may wait for the same: one that is cancelled must not take it from them.
        return await asyncio.shield(coming)

    def _arrived(self, key: K, coming: asyncio.Future[V]) -> None:
        del self._coming[key]
        if coming.cancelled() or coming.exception() is not None:
            return
        value = coming.result()
        if value is not None:
            self.put(key, value)

    def put(self, key: K, value: V) -> None:
        """Keep what came by another way."""
        if key in self._held:
            return
        self._held[key] = value
        self._weight += self._weigh(value)
        while self._weight > self._limit and len(self._held) > 1:
            _, old = self._held.popitem(last=False)
            self._weight -= self._weigh(old)

    def __len__(self) -> int:
        return len(self._held)


class MessageCache(SharedFetch[tuple[int, int], Message | None]):
    """By partition and number. None for a message that Redis does not hold."""

    #: what a message costs beside its body, about
    OVERHEAD = 1024

    def __init__(self, consumer: Consumer, limit_bytes: int) -> None:
        super().__init__(
            lambda key: consumer.message(*key),
            lambda message: self.OVERHEAD + (len(message.body) if message is not None else 0),
            limit_bytes,
        )


class KeyCache:
    """By name. A registered key may be replaced: what is known of it is good for FRESH seconds."""

    FRESH = 5.0

    def __init__(self, store: KeyStore, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._called: SharedFetch[str, PrivateKey] = SharedFetch(self._fetch, lambda _: 1, limit)
        self._registered: SharedFetch[tuple[str, int], PrivateKey] = SharedFetch(
            lambda key: self._fetch(key[0]), lambda _: 1, limit
        )
        self._clock = clock

    def held(self, name: str) -> PrivateKey | None:
        """One that was called for by a delivery, and is here already; never a registered one."""
        held = self._called.held(name)
        if held is not None:
            LOOKUPS.inc()
        return held

    async def get(self, name: str) -> PrivateKey:
        """Raises KeyUnavailable, QueueUnavailable."""
        LOOKUPS.inc()
        if is_registered(name):
            # The old one is never asked for again, and goes as the cache fills.
            return await self._registered.get((name, int(self._clock() / self.FRESH)))
        return await self._called.get(name)

    async def _fetch(self, name: str) -> PrivateKey:
        KEY_FETCHES.inc()
        return await self._store.fetch(name)
