"""Whether the loops of this process run: readiness follows them, not the port.

A loop beats when it has done its round. One that has not beaten for a while, or whose last round failed,
makes the process not ready.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final


@dataclass(slots=True)
class _Loop:
    beaten: float
    problem: str


class Beats:
    #: seconds without a beat after which a loop counts as stuck
    PATIENCE: Final = 10.0

    def __init__(self, *names: str, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._loops = {name: _Loop(monotonic(), "not started") for name in names}

    def beat(self, name: str) -> None:
        """The loop has done its round."""
        loop = self._loops[name]
        loop.beaten, loop.problem = self._monotonic(), ""

    def fail(self, name: str, problem: str) -> None:
        """The loop runs, but its round failed."""
        loop = self._loops[name]
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
