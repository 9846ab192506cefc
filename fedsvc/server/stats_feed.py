"""WatchQueueStats: figures read once for all who watch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import suppress
from typing import Any, Final, Generic, TypeVar

from fedsvc.errors import Stopping
from fedsvc.queue.shared import Shared
from fedsvc.server.caller import caller
from fedsvc.server.places import Places

T = TypeVar("T")

#: seconds after which to ask again for a place
_RETRY_AFTER_S: Final = 5


class StatsFeed(Generic[T]):
    """All who watch in this process. However many they are, figures are read twice in the shortest of their
    intervals at most."""

    #: milliseconds between two responses
    SHORTEST_MS: Final = 100
    DEFAULT_MS: Final = 1000

    def __init__(
        self, places: Places, read: Callable[[], Coroutine[Any, Any, T]], stopping: asyncio.Event
    ) -> None:
        self._places = places
        self._shared = Shared(read, 0.0)
        self._stopping = stopping

    async def watch(self, interval_ms: int) -> AsyncGenerator[T, None]:
        """Figures at once and after each interval. Raises Overloaded if there are too many who watch,
        QueueUnavailable, Stopping."""
        with self._places.taken(caller(), _RETRY_AFTER_S):
            loop, interval = asyncio.get_running_loop(), interval_ms / 1000
            due = loop.time()
            while not self._stopping.is_set():
                yield await self._shared.get(interval / 2)
                # Those who read slowly get the latest, and nothing twice to make up for it.
                due = max(due + interval, loop.time())
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(due):
                        await self._stopping.wait()
            raise Stopping("this server stops; another goes on")
