"""Keeps children running: starts them again when they crash, gives up when they crash all the time."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from fedsvc.children import Child

log = structlog.get_logger(__name__)

#: crashes of one child within `_WINDOW` seconds after which it is given up
_MAX_CRASHES: Final = 5
_WINDOW: Final = 60.0
#: seconds before the first new start; doubled with each crash within the window
_FIRST_PAUSE: Final = 0.2

Start = Callable[[], Awaitable[Child]]


class Supervisor:
    def __init__(self, grace: float) -> None:
        """`grace`: seconds that a child gets to stop."""
        self._grace = grace
        self._keepers: list[asyncio.Task[None]] = []
        self.children: dict[str, Child] = {}
        self._stopping = asyncio.Event()
        self._given_up = ""

    def handle_signals(self) -> None:
        """SIGTERM and SIGINT stop everything."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self.stop)

    def stop(self) -> None:
        self._stopping.set()

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()

    async def add(self, name: str, start: Start) -> Child:
        """Start a child and keep it running."""
        child = await start()
        self.children[name] = child
        self._keepers.append(asyncio.create_task(self._keep(name, start)))
        return child

    async def wait(self) -> None:
        """Until `stop`, or until a child is given up."""
        await self._stopping.wait()

    async def end(self) -> int:
        """Stop all children. Returns the exit code: 0 if all ended well."""
        self._stopping.set()
        for keeper in self._keepers:
            keeper.cancel()
        codes = await asyncio.gather(*(child.stop(self._grace) for child in self.children.values()))
        if self._given_up:
            log.error("given_up", child=self._given_up)
            return 1
        return 0 if not any(codes) else 1

    async def _keep(self, name: str, start: Start) -> None:
        crashes: deque[float] = deque(maxlen=_MAX_CRASHES)
        while True:
            code = await self.children[name].process.wait()
            if self.stopping:
                return
            crashes.append(time.monotonic())
            log.warning("child_ended", child=name, code=code)
            recent = [at for at in crashes if at > time.monotonic() - _WINDOW]
            if len(recent) >= _MAX_CRASHES:
                self._given_up = name
                self._stopping.set()
                return
            await asyncio.sleep(_FIRST_PAUSE * 2 ** (len(recent) - 1))
            self.children[name] = await start()
