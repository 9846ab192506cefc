"""Deadlines of many waits, watched by one timer.

Nearly every wait ends long before its deadline. A timer for each, set and cancelled, costs 10 µs; to be
entered in a bucket and taken out again a tenth of that.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final


class Deadlines:
    """Belongs to one event loop. Ends a wait up to TICK_S late, and never early."""

    TICK_S: Final = 0.05

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        #: by the tick at which they are over
        self._buckets: dict[int, set[asyncio.Future[Any]]] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def until(self, when: float, future: asyncio.Future[None]) -> None:
        """Wait for `future` until `when` (seconds, the loop's clock). Raises TimeoutError, or what the future
        raises. The future is for one who waits only."""
        tick = int(when / self.TICK_S) + 1
        bucket = self._buckets.get(tick)
        if bucket is None:
            bucket = self._buckets[tick] = set()
            if self._timer is None:
                self._timer = self._loop.call_later(self.TICK_S, self._turn)
        bucket.add(future)
        try:
            await future
        finally:
            bucket.discard(future)

    def _turn(self) -> None:
        over = int(self._loop.time() / self.TICK_S)
        for tick in [tick for tick in self._buckets if tick <= over]:
            for future in self._buckets.pop(tick):
                if not future.done():
                    future.set_exception(TimeoutError())
        self._timer = self._loop.call_later(self.TICK_S, self._turn) if self._buckets else None
