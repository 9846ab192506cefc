"""Which worker serves which partitions, so that one worker speaks to a host, over connections that it has.

Live workers divide the partitions among them by rendezvous hashing. A worker takes from its own first, and
from another's when that one is behind. None of it is needed for anything to be right: every worker may take
everything, and who errs about the others only makes connections more than once.

    not heard yet      all partitions are ours
    bell, ours         ask at once
    bell, another's    if we are its deputy: look after PATIENCE; if it is urgent, ask after URGENT_PATIENCE
    every ROUND        look at those whose deputy we are, those that were behind, and a few others in turn
    look               waited for PATIENCE: taken from when we have nothing else to do, for WINDOW;
                       waited LAGGARD longer than anything of ours: served as if it was ours, for WINDOW

Each partition has one deputy. If all others looked at it as often as that one, what Redis has to do while
nothing happens would grow with the product of workers and partitions.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import lru_cache
from hashlib import blake2b
from itertools import islice
from math import ceil
from typing import Final


class Affinity:
    #: seconds that something waits in another's partition before we look whether that one is behind
    PATIENCE: Final = 0.25
    URGENT_PATIENCE: Final = 0.05
    #: seconds between two rounds of looks, and for which a look counts
    ROUND: Final = 0.5
    WINDOW: Final = 1.0
    #: seconds in which all others together look once at a partition of which they are no deputies
    OTHERS: Final = 1.0
    #: seconds that something of another's waits longer than anything of ours, before it is served beside ours
    LAGGARD: Final = 3.0

    def __init__(self, name: str, partitions: int, monotonic: Callable[[], float] = time.monotonic) -> None:
        """`name`: of this worker, as others see it."""
        self.name = name
        self.all: Final = frozenset(range(partitions))
        self._monotonic = monotonic
        self._workers: frozenset[str] = frozenset()
        #: workers that said they stop: whatever their leases say
        self._leaving: frozenset[str] = frozenset()
        self.own: frozenset[int] = self.all
        #: partition -> until when it may be taken from (seconds, the clock's)
        self._behind: dict[int, float] = {}
        #: for how long the oldest of ours had waited, milliseconds, as of the last look at all
        self._ours_ms = 0
        #: others' partitions that it is us who look after
        self._deputy_for: frozenset[int] = frozenset()
        #: the rest, the next to look at first, and how many in a round
        self._rest: deque[int] = deque()
        self._in_turn = 0
        self._laggards: dict[int, float] = {}
        #: partition -> when to look at it, after its bell
        self._looks: dict[int, float] = {}
        self._urgent_looks: dict[int, float] = {}

    @property
    def alone(self) -> bool:
        """Whether every partition is ours."""
        return self.own == self.all

    @property
    def workers(self) -> frozenset[str]:
        """Those that share the partitions; empty before the first were seen."""
        return self._workers

    def see(self, workers: Iterable[str]) -> None:
        """These are alive, by their leases."""
        alive = frozenset(workers)
        self._leaving &= alive
        self._divide(alive)

    def joined(self, worker: str) -> None:
        """It has just begun."""
        self._divide(self._workers | {worker})

    def left(self, worker: str) -> None:
        """It takes nothing more."""
        if worker != self.name:
            self._leaving |= {worker}
            self._divide(self._workers)

    def _divide(self, workers: frozenset[str]) -> None:
        workers = (workers | {self.name}) - self._leaving
        if workers == self._workers:
            return
        self._workers = workers
        shares = divided(workers, len(self.all))
        self.own = shares[self.name]
        others = self.all - self.own
        self._deputy_for = frozenset(p for p in others if self._first_without_owner(p, shares))
        # Each worker in an order of its own, so that two never look at the same ones all the time.
        rest = others - self._deputy_for
        self._rest = deque(sorted(rest, key=lambda partition: _score(self.name, str(partition))))
        looking = max(1, len(workers) - 2)  # at each of them: neither its worker nor its deputy
        self._in_turn = ceil(len(rest) * self.ROUND / self.OTHERS / looking)
        for waiting in (self._behind, self._laggards, self._looks, self._urgent_looks):
            for partition in self.own & waiting.keys():
                del waiting[partition]

    def _first_without_owner(self, partition: int, shares: Mapping[str, frozenset[int]]) -> bool:
        others = (worker for worker, owned in shares.items() if partition not in owned)
        return max(others, key=lambda worker: _score(worker, str(partition))) == self.name

    def serves(self, partition: int) -> bool:
        """Whether to take from it now: it is ours, or another's that is behind."""
        return partition in self.own or self._behind.get(partition, 0.0) > self._monotonic()

    def choose(self, hot: Collection[int], first: Collection[int], count: int) -> list[int]:
        """Which `count` of the partitions that may hold work to ask: what is ours (and those of `first`) as
        long as there is any."""
        if self.alone:
            return list(islice(hot, count))
        mine = (p for p in hot if p in self.own or p in first or self._lags(p))
        return list(islice(mine, count)) or list(islice(hot, count))

    def _lags(self, partition: int) -> bool:
        return bool(self._laggards) and self._laggards.get(partition, 0.0) > self._monotonic()

    def heard(self, partition: int, *, urgent: bool = False) -> bool:
        """The bell of another's partition rang. Returns whether there is something to look at sooner now."""
        # One other is enough to see that something is left; all would ask as often as bells ring.
        if partition not in self._deputy_for:
            return False
        looks = self._urgent_looks if urgent else self._looks
        patience = self.URGENT_PATIENCE if urgent else self.PATIENCE
        if partition in looks:
            return False
        looks[partition] = self._monotonic() + patience
        return True

    def seconds_to_look(self) -> float | None:
        """Until the next of those looks; None if there is none."""
        times = (*self._looks.values(), *self._urgent_looks.values())
        return max(0.0, min(times) - self._monotonic()) if times else None

    def looks_due(self) -> tuple[list[int], list[int]]:
        """Partitions to look at now, and those in which something urgent may have been left; each once."""
        now = self._monotonic()
        due = [partition for partition, at in self._looks.items() if at <= now]
        urgent = [partition for partition, at in self._urgent_looks.items() if at <= now]
        for partition in due:
            del self._looks[partition]
        for partition in urgent:
            del self._urgent_looks[partition]
        return due, urgent

    def to_look_at(self) -> frozenset[int]:
        """Others' partitions to look at in this round."""
        now = self._monotonic()
        behind = {partition for partition, until in self._behind.items() if until > now}
        in_turn = set(islice(self._rest, self._in_turn))
        self._rest.rotate(-self._in_turn)
        return self._deputy_for | behind | in_turn

    def looked(self, waited_ms: Mapping[int, int]) -> list[int]:
        """How long the oldest that could be taken has waited, by partition. Returns those of others that are
        behind."""
        now = self._monotonic()
        self._ours_ms = max((ms for p, ms in waited_ms.items() if p in self.own), default=self._ours_ms)
        behind = []
        for partition, waited in waited_ms.items():
            if partition in self.own:
                continue
            self._behind.pop(partition, None)
            self._laggards.pop(partition, None)
            if waited >= self.PATIENCE * 1000:
                behind.append(partition)
                self._behind[partition] = now + self.WINDOW
                if waited >= self._ours_ms + self.LAGGARD * 1000:
                    self._laggards[partition] = now + self.WINDOW
        return behind


def divided(workers: Collection[str], partitions: int) -> dict[str, frozenset[int]]:
    """Partitions of each worker: every partition has one, every worker has one, and none more than another by
    more than one. With more workers than partitions, several share a partition.

    Everybody who knows the same workers comes to the same result, and when one comes or goes, little moves:
    rendezvous hashing (Thaler and Ravishankar, 1998) with bounded loads.
    """
    numbers = [str(number) for number in range(partitions)]
    if len(workers) <= partitions:
        chosen = _matched(numbers, workers)
        of: dict[str, set[int]] = {worker: set() for worker in workers}
        for number, worker in chosen.items():
            of[worker].add(int(number))
        return {worker: frozenset(owned) for worker, owned in of.items()}
    return {worker: frozenset((int(n),)) for worker, n in _matched(workers, numbers).items()}


def _matched(many: Collection[str], few: Collection[str]) -> dict[str, str]:
    """One of `few` for each of `many`; each of `few` as often as any other, give or take one."""
    floor, rest = divmod(len(many), len(few))
    pairs = sorted(((_score(m, f), m, f) for m in many for f in few), reverse=True)
    chosen: dict[str, str] = {}
    load = dict.fromkeys(few, 0)
    for most in (floor, floor + 1) if rest else (floor,):
        for _, m, f in pairs:
            if m not in chosen and load[f] < most:
                chosen[m] = f
                load[f] += 1
    return chosen


@lru_cache(maxsize=65_536)
def _score(one: str, other: str) -> bytes:
    # The same whichever of both is the worker, so that little moves either as there come to be more workers
    # than partitions.
    low, high = sorted((one, other))
    return blake2b(f"{low}\0{high}".encode(), digest_size=8).digest()
