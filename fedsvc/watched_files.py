"""Notices that files have changed, at little cost: what tokens and certificates are read from."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeVar

from fedsvc.errors import ConfigurationError

T = TypeVar("T")

#: seconds between two looks
LOOK_EVERY: Final = 2.0


class WatchedFiles:
    """A file that is replaced, also by the link of its directory (as Kubernetes does it), has changed."""

    def __init__(self, paths: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._paths = [Path(path) for path in paths if path]
        self._clock = clock
        self._looked = clock()
        self._seen = self._look()
        #: what was wrong with them when they were read last
        self._problem = ""

    def changed(self) -> bool:
        """Whether they differ from when `keep` was called last. False if they were looked at just now."""
        now = self._clock()
        if not self._paths or now - self._looked < LOOK_EVERY:
            return False
        self._looked = now
        return self._look() != self._seen

    def keep(self) -> None:
        """What they are now is about to be read: what changes meanwhile has changed."""
        self._seen = self._look()

    def read_again(self, read: Callable[[], T], unusable: Callable[[str], None]) -> T | None:
        """What `read` makes of them if they have changed; None if not, or if it raises ConfigurationError.
        Then they are read at the next look too, changed or not: they may not have been readable, which does
        not change them. `unusable` is told why, once as long as that is the same."""
        if not self.changed():
            return None
        self.keep()
        try:
            found = read()
        except ConfigurationError as error:
            self._seen = []
            if self._problem != str(error):
                self._problem = str(error)
                unusable(self._problem)
            return None
        self._problem = ""
        return found

    def _look(self) -> list[tuple[int, ...]]:
        return [self._stamp(path) for path in self._paths]

    @staticmethod
    def _stamp(path: Path) -> tuple[int, ...]:
        try:
            status = path.stat()
        except OSError:
            return ()
        return (status.st_mtime_ns, status.st_size, status.st_ino)
