"""Which partitions the periodic work of a worker goes through."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from fedsvc.worker.affinity import Affinity


class Rounds:
    """Those that are ours each time, and all of them now and then, since whose they are may be dead or stuck:
    what many workers with many partitions ask of Redis while there is nothing to do is then hardly more than
    what one worker asks."""

    def __init__(
        self, affinity: Affinity, whole_s: float, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        """`whole_s`: seconds between two rounds through all."""
        self._affinity: Final = affinity
        self._whole_s: Final = whole_s
        self._monotonic: Final = monotonic
        self._whole_due = monotonic() + whole_s

    def next(self) -> frozenset[int]:
        now = self._monotonic()
        if now < self._whole_due:
            return self._affinity.own
        self._whole_due = now + self._whole_s
        return self._affinity.all
