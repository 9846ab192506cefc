"""Loops that run until they are cancelled, and their end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Final

#: seconds after which one that has not ended is cancelled again
AGAIN: Final = 0.5


async def end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel them until all have ended. What they raise stays with them.

    Once is not enough: a cancellation that reaches `asyncio.gather` in the moment in which something that it
    waits for fails is lost, and a loop that takes the failure for an outage would go on for ever.
    """
    left = {task for task in tasks if not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=AGAIN)
