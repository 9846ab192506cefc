"""How many more deliveries a worker process may take on now."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

#: partition, and number of the entry by which a delivery is in flight there
Entry = tuple[int, int]


class Places:
    #: seconds after which a delivery only waits for its inbox and costs next to nothing: it takes up none of
    #: the places any more, so that hosts that hang keep nobody else waiting
    SLOW: Final = 1.0
    #: deliveries in all, as a multiple of the places
    MAX_SLOW: Final = 4
    #: deliveries that were taken and not sent yet: as many as keep the signing process busy until Redis has
    #: given more, which takes some 10 ms on a busy machine
    UNSENT: Final = 128
    #: part of the places that only urgent deliveries get
    RESERVE: Final = 16

    def __init__(self, concurrency: int, clock: Callable[[], float]) -> None:
        """`clock`: seconds, monotonic."""
        self._concurrency = concurrency
        self._clock = clock
        #: those that take up a place, with their start, oldest first
        self._placed: dict[Entry, float] = {}
        self._unsent: set[Entry] = set()
        self._taken = 0
        self._reserved = min(self.UNSENT, concurrency) // self.RESERVE
        #: places below which asking is left for later, so that it is done in batches under load, yet in time
        self.worth_asking = max(1, min(concurrency, self.UNSENT) // 2)

    def take(self, entry: Entry) -> None:
        self._taken += 1
        self._placed[entry] = self._clock()
        self._unsent.add(entry)

    def sent(self, entry: Entry) -> None:
        """Only its host has to do something yet."""
        self._unsent.discard(entry)

    def leave(self, entry: Entry) -> None:
        self._taken -= 1
        self._placed.pop(entry, None)
        self._unsent.discard(entry)

    @property
    def unsent(self) -> int:
        return len(self._unsent)

    @property
    def free(self) -> int:
        """For what is urgent."""
        past = self._clock() - self.SLOW
        while self._placed:
            entry = next(iter(self._placed))
            if self._placed[entry] > past:
                break
            del self._placed[entry]
        return min(
            self._concurrency - len(self._placed),
            self.MAX_SLOW * self._concurrency - self._taken,
            self.UNSENT - len(self._unsent),
        )

    @property
    def free_for_all(self) -> int:
        return self.free - self._reserved

    @property
    def worth(self) -> bool:
        """Whether there is room for so many that it is worth asking."""
        left = self.UNSENT - len(self._unsent) - self._reserved
        return left >= self.worth_asking and self.free_for_all >= self.worth_asking

    def patience(self, longest: float) -> float:
        """Seconds until a place may be free because its delivery is slow; at most `longest`."""
        if not self._placed:
            return longest
        oldest = next(iter(self._placed.values()))
        return min(longest, max(0.01, oldest + self.SLOW - self._clock()))
