"""Places of a process that callers share, each for as long as it takes: no caller has all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from fedsvc.errors import Overloaded, RateLimited
from fedsvc.server.caller import Caller

#: share of the places that one caller may have, if there are others
SHARE: Final = 0.5


class Places:
    def __init__(self, most: int, what: str, alone: Callable[[], bool] = lambda: True) -> None:
        """`most` of `what` (for messages); `alone`: whether there is no more than one caller."""
        self._most = most
        self._what = what
        self._alone = alone
        self._taken: Counter[str] = Counter()

    def take(self, known: Caller, retry_after_s: int = 1) -> None:
        """A place for a caller, until `leave`. Raises RateLimited if it has its share, Overloaded if there is
        none left."""
        share = self._most if self._alone() else max(1, int(self._most * SHARE))
        if self._taken.total() >= self._most:
            raise Overloaded(f"this process has {self._most} {self._what} already", retry_after_s)
        if self._taken[known.name] >= share:
            raise RateLimited(
                f"{known.name} has {share} {self._what} already, of {self._most}", retry_after_s
            )
        self._taken[known.name] += 1

    def leave(self, known: Caller) -> None:
        self._taken[known.name] -= 1
        if not self._taken[known.name]:
            del self._taken[known.name]

    @contextmanager
    def taken(self, known: Caller, retry_after_s: int = 1) -> Iterator[None]:
        """A place for as long as the context. Raises as `take` does."""
        self.take(known, retry_after_s)
        try:
            yield
        finally:
            self.leave(known)
