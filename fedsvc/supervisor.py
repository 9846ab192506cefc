"""Keeps children running: starts them again when they crash, gives up when they crash all the time."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

import structlog

from fedsvc.children import Child
from fedsvc.errors import FedsvcError

log = structlog.get_logger(__name__)

#: crashes of one child within `_WINDOW` seconds after which it is given up
_MAX_CRASHES: Final = 5
_WINDOW: Final = 60.0
#: seconds before the first new start; doubled with each crash within the window
_FIRST_PAUSE: Final = 0.2

Start = Callable[[], Awaitable[Child]]


class Supervisor:
    def __init__(self, grace: float, last_grace: float = 0.0) -> None:
        """`grace`: seconds that a child gets to stop; `last_grace`: those that it gets if nobody waits any
        longer."""
        self._grace = grace
        self._last_grace = last_grace
        self._keepers: list[asyncio.Task[None]] = []
        self.children: dict[str, Child] = {}
        self._stopping = asyncio.Event()
        self._given_up = ""

    def handle_signals(self, interrupted: Callable[[], None] = lambda: None) -> None:
        """SIGTERM and SIGINT stop everything; SIGINT while all stops leaves what is on its way. `interrupted`
        is called at the first SIGINT."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.stop)
        loop.add_signal_handler(signal.SIGINT, self._interrupt, interrupted)

    def _interrupt(self, interrupted: Callable[[], None]) -> None:
        if not self.stopping:
            self.stop()
            interrupted()
            return
        # Children that have children of their own pass it on: killed, they would leave them to themselves.
        for child in self.children.values():
            if child.running:
                child.process.send_signal(signal.SIGINT)
        asyncio.get_running_loop().call_later(self._last_grace, self._kill)

    def _kill(self) -> None:
        for name, child in self.children.items():
            if child.running:
                log.warning("killed", child=name, pid=child.process.pid)
                child.process.kill()

    def stop(self) -> None:
        self._stopping.set()

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()

    async def add(self, name: str, start: Start) -> Child:
        """Start a child and keep it running."""
        child = await start()
        self.children[name] = child
        self.keep(name, lambda: self.children[name].process.wait(), partial(self._replace, name, start))
        return child

    def keep(
        self, name: str, ended: Callable[[], Awaitable[int]], start: Callable[[], Awaitable[None]]
    ) -> None:
        """Call `start` whenever `ended` returns (an exit code), until `stop`."""
        self._keepers.append(asyncio.create_task(self._keep(name, ended, start)))

    async def _replace(self, name: str, start: Start) -> None:
        self.children[name] = await start()

    async def wait(self) -> None:
        """Until `stop`, or until a child is given up."""
        await self._stopping.wait()

    async def end(self) -> int:
        """Stop all children. Returns the exit code: 0 if all ended well."""
        self._stopping.set()
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        self._keepers.clear()
        codes = await asyncio.gather(*(child.stop(self._grace) for child in self.children.values()))
        # SIGTERM ends a child that has not begun: its handlers are set up before it takes any work.
        return 1 if self._given_up or set(codes) - {0, -signal.SIGTERM} else 0

    async def _keep(
        self, name: str, ended: Callable[[], Awaitable[int]], start: Callable[[], Awaitable[None]]
    ) -> None:
        crashes: deque[float] = deque(maxlen=_MAX_CRASHES)
        while True:
            code = await ended()
            if self.stopping:
                return
            crashes.append(time.monotonic())
            log.warning("child_ended", child=name, code=code)
            recent = [at for at in crashes if at > time.monotonic() - _WINDOW]
            if len(recent) >= _MAX_CRASHES:
                log.error("given_up", child=name, crashes=len(recent), seconds=_WINDOW)
                self._given_up = name
                self._stopping.set()
                return
            await asyncio.sleep(_FIRST_PAUSE * 2 ** (len(recent) - 1))
            try:
                await start()
            except (OSError, FedsvcError) as error:  # what ended is still there: it counts once more
                log.warning("child_not_started", child=name, problem=str(error))


def problems_of(supervisor: Supervisor) -> dict[str, Any]:
    """Of each process that is not ready: why."""
    if supervisor.stopping:
        return {"worker": "stopping"}
    problems: dict[str, Any] = {}
    for name, child in supervisor.children.items():
        if not child.running:
            problems[name] = "ended"
        elif not child.ready:
            problems[name] = child.status.get("problems") or "no word from it"
    return problems
