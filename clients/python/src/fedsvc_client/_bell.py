"""What a thread that waits is woken by."""

from __future__ import annotations

import contextlib
import queue


class Bell:
    """Ends the wait of one thread. Not a threading.Event: a signal handler that rings it may have interrupted
    the very thread that waits, at a moment when that holds the event's lock, and would wait for ever."""

    def __init__(self) -> None:
        self._rung: queue.SimpleQueue[None] = queue.SimpleQueue()

    def ring(self) -> None:
        """End the wait that goes on, or else the next. Reentrant, as `SimpleQueue.put` is."""
        if self._rung.empty():
            self._rung.put(None)

    def wait(self, seconds: float) -> None:
        """Until it is rung, so long at most."""
        with contextlib.suppress(queue.Empty):
            self._rung.get(timeout=seconds)
