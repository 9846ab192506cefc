"""How many deliveries are being prepared at a time, and who is next.

Until it is signed and sent a delivery costs this process work; after that it only waits. When there is more
work than time, all that is under way is slow: so few are let in, and an urgent one passes those that wait.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from fedsvc.domain.delivery import Priority

#: whose turn it is, of ten: what one priority does not use, the others get
_TURNS: Final = (1, 2, 1, 1, 2, 1, 3, 1, 2, 1)


class Gate:
    """Belongs to one event loop."""

    def __init__(self, limit: int) -> None:
        self._free = limit
        self._waiting: dict[int, deque[asyncio.Future[None]]] = {p: deque() for p in Priority}
        self._turn = 0

    async def enter(self, priority: Priority) -> None:
        """Whoever enters must leave."""
        if self._free > 0:
            self._free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting[priority].append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave()  # it was let in at this very moment
            raise

    def leave(self) -> None:
        """Let the next one in."""
        while (turn := self._next()) is not None:
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

    def _next(self) -> asyncio.Future[None] | None:
        self._turn = (self._turn + 1) % len(_TURNS)
        for priority in (_TURNS[self._turn], *Priority):
            if self._waiting[priority]:
                return self._waiting[priority].popleft()
        return None
