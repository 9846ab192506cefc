"""One answer for all who ask at the same time, or soon after."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Shared(Generic[T]):
    def __init__(self, read: Callable[[], Coroutine[Any, Any, T]], fresh: float) -> None:
        """`fresh`: seconds for which an answer is good."""
        self._read = read
        self._fresh = fresh
        self._answer: tuple[float, T] | None = None
        self._reading: asyncio.Task[T] | None = None

    def forget(self) -> None:
        """Something has changed: whoever asks from now on gets an answer that was begun from now on."""
        self._answer = self._reading = None

    async def get(self, fresh: float | None = None) -> T:
        """An answer that is at most `fresh` seconds old, or is being read. Raises what reading raises."""
        age = self._fresh if fresh is None else fresh
        if self._answer is not None and asyncio.get_running_loop().time() - self._answer[0] < age:
            return self._answer[1]
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._begin())
            self._reading.add_done_callback(_take_note)
        # Who gives up does not take the others' answer away.
        return await asyncio.shield(self._reading)

    async def _begin(self) -> T:
        me, begun = asyncio.current_task(), asyncio.get_running_loop().time()
        answer = await self._read()
        if self._reading is me:
            self._answer = begun, answer
        return answer


def _take_note(reading: asyncio.Task[Any]) -> None:
    """Where all who asked have given up, asyncio would sooner or later log what it raised as a defect."""
    if not reading.cancelled():
        reading.exception()
