"""Whether the loops of this process run: readiness follows them, not the port.

A loop beats when it has done its round. One that has not beaten for a while, or whose last round failed,
makes the process not ready. One that has not come round at all for a long time, not even to a failure, is
stuck: nothing but a new start helps.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog

log = structlog.get_logger(__name__)

_NOT_STARTED: Final = "not started"


@dataclass(slots=True)
class _Loop:
    beaten: float
    problem: str


class Beats:
    #: seconds without a beat after which a loop counts as stuck
    PATIENCE: Final = 10.0
    #: seconds without a round, failed ones included, after which it is given up. Longer than anything that a
    #: round waits for: whatever is away answers within its deadline, or fails.
    STUCK: Final = 120.0

    def __init__(self, *names: str, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._loops = {name: _Loop(monotonic(), _NOT_STARTED) for name in names}

    def beat(self, name: str) -> None:
        """The loop has done its round."""
        loop = self._loops[name]
        if loop.problem:
            if loop.problem != _NOT_STARTED:
                log.info("loop_recovered", loop=name)
            loop.problem = ""
        loop.beaten = self._monotonic()

    def fail(self, name: str, problem: str) -> None:
        """The loop runs, but its round failed."""
        loop = self._loops[name]
        if loop.problem in ("", _NOT_STARTED):
            log.warning("loop_failing", loop=name, problem=problem)
        loop.beaten, loop.problem = self._monotonic(), problem

    @property
    def problems(self) -> dict[str, str]:
        """Of each loop that is not well: what is wrong."""
        now = self._monotonic()
        found = {}
        for name, loop in self._loops.items():
            if loop.problem:
                found[name] = loop.problem
            elif now - loop.beaten > self.PATIENCE:
                found[name] = f"no round for {now - loop.beaten:.0f} s"
        return found

    @property
    def stuck(self) -> list[str]:
        """Loops that are not coming round any more."""
        now = self._monotonic()
        return [name for name, loop in self._loops.items() if now - loop.beaten > self.STUCK]
