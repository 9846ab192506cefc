"""How many deliveries may be under way to one host at a time.

The wait is for ourselves, not for the host: it takes place before the deadline of the exchange begins
to run, has a deadline of its own, and says nothing about the host.
"""

from __future__ import annotations

import asyncio
from collections import deque


class HostSlots:
    """`limit` slots for each host; who waits gets them in order. Belongs to one event loop."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken: dict[str, int] = {}
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    def try_take(self, host: str) -> bool:
        """Take a slot if one is free. Every slot taken must be released."""
        taken = self._taken.get(host, 0)
        if taken >= self._limit:
            return False
        self._taken[host] = taken + 1
        return True

    async def take(self, host: str, timeout_s: float) -> bool:
        """Wait for a slot; false if there was none within `timeout_s` seconds."""
        if self.try_take(host):
            return True
        turn = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(host, deque())
        waiting.append(turn)
        try:
            async with asyncio.timeout(timeout_s):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self.release(host)  # it was handed over in the very moment
            elif turn in waiting:
                waiting.remove(turn)
                if not waiting:
                    self._waiting.pop(host, None)
            if isinstance(error, TimeoutError):
                return False
            raise
        return True

    def release(self, host: str) -> None:
        """Give a slot back, or hand it to who waits longest."""
        waiting = self._waiting.get(host)
        while waiting:
            turn = waiting.popleft()
            if not waiting:
                del self._waiting[host]
            if not turn.done():
                turn.set_result(None)
                return
        taken = self._taken[host] - 1
        if taken:
            self._taken[host] = taken
        else:
            del self._taken[host]
