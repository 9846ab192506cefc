"""Partitions of which Redis does not answer. Of a cluster only a part may be away: each is asked for by
itself, and keeps nobody waiting for the others."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from fedsvc.errors import QueueUnavailable


class Absences:
    def __init__(self, ask: Callable[[int], Awaitable[object]], back: Callable[[int], None]) -> None:
        """`ask`: something that costs Redis little, and raises QueueUnavailable while the partition is away;
        `back` is called for each that has answered again."""
        self._ask = ask
        self._back = back
        self._waiting: dict[int, asyncio.Task[None]] = {}
        self._closed = False
        #: what was told last of one that is away; empty if none is
        self.problem = ""

    def __contains__(self, partition: int) -> bool:
        return partition in self._waiting

    def add(self, partition: int, problem: str, pause: float) -> None:
        """It is away: ask for it every `pause` seconds."""
        if self._closed:
            return
        self.problem = problem
        if partition not in self._waiting:
            self._waiting[partition] = asyncio.ensure_future(self._wait(partition, pause))

    async def _wait(self, partition: int, pause: float) -> None:
        while True:
            await asyncio.sleep(pause)
            try:
                await self._ask(partition)
            except QueueUnavailable as error:
                self.problem = str(error)
            except Exception:  # noqa: BLE001 - it answers; who asks for work learns what is wrong
                break
            else:
                break
        del self._waiting[partition]
        if not self._waiting:
            self.problem = ""
        self._back(partition)

    def close(self) -> None:
        """Ask for nothing more."""
        self._closed = True
        for waiting in self._waiting.values():
            waiting.cancel()
        self._waiting.clear()
