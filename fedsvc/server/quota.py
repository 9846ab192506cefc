"""How much of one origin may be pending in the whole queue: FEDSVC_ORIGIN_BACKLOG.

What Redis tells of an origin counts for a second, and with it what this process has accepted since then. So
the limit is passed by no more than all other server processes together accept of that origin in a second.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from itertools import islice
from types import TracebackType
from typing import Final

from fedsvc.config import Settings
from fedsvc.errors import InvalidInput, OriginBacklogFull, QueueUnavailable
from fedsvc.queue.stats import StatsReader

#: seconds for which what Redis told counts
_FRESH_S: Final = 1.0
#: seconds after which to ask again
_RETRY_AFTER_S: Final = 10
#: origins that are remembered, beside those with calls under way
_MOST: Final = 10_000
#: at how many more is looked for one that is idle
_LOOKS: Final = 8


class _Origin:
    __slots__ = ("lock", "pending", "read_at", "recent", "underway")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.pending = 0
        self.read_at = float("-inf")
        #: accepted since Redis was asked
        self.recent = 0
        #: of calls that have not ended
        self.underway = 0


class Room:
    """Of a call, from before it reaches Redis until its end. `taken`: how many it has brought in the end."""

    __slots__ = ("_name", "_quota", "_wanted", "taken")

    def __init__(self, quota: Quota, name: str, wanted: int) -> None:
        self._quota = quota
        self._name = name
        self._wanted = wanted
        self.taken = 0

    async def __aenter__(self) -> Room:
        await self._quota.reserve(self._name, self._wanted)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, (QueueUnavailable, asyncio.CancelledError)):
            self.taken = self._wanted  # all of it may be there
        self._quota.release(self._name, self._wanted, self.taken)


class Quota:
    def __init__(
        self, settings: Settings, stats: StatsReader, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most = settings.origin_backlog
        self._stats = stats
        self._clock = clock
        self._origins: OrderedDict[str, _Origin] = OrderedDict()

    def room(self, origin: str, wanted: int) -> Room:
        """To be entered before deliveries of an origin are accepted. That raises OriginBacklogFull if they
        would be too many now, InvalidInput if they always were, and QueueUnavailable."""
        return Room(self, origin, wanted)

    async def reserve(self, name: str, wanted: int) -> None:
        """For `Room` only."""
        if not self._most:
            return
        if wanted > self._most:
            raise InvalidInput(
                "inboxes", f"has {wanted} inboxes; {self._most} deliveries of an origin may wait"
            )
        origin = self._origins.get(name)
        if origin is None:
            origin = self._origins[name] = _Origin()
        self._origins.move_to_end(name)
        origin.underway += wanted
        try:
            async with origin.lock:
                if self._clock() - origin.read_at >= _FRESH_S:
                    # What ends while Redis is asked may be counted twice, but only until it is asked again.
                    told = origin.recent
                    origin.pending = await self._stats.pending_of(name)
                    origin.read_at = self._clock()
                    origin.recent -= told
            if origin.pending + origin.recent + origin.underway > self._most:
                raise OriginBacklogFull(
                    f"{name} has {origin.pending + origin.recent} deliveries pending; {self._most} may be",
                    _RETRY_AFTER_S,
                )
        except BaseException:
            origin.underway -= wanted
            raise
        finally:
            self._tidy()

    def release(self, name: str, wanted: int, taken: int) -> None:
        """For `Room` only."""
        if self._most:
            origin = self._origins[name]
            origin.underway -= wanted
            origin.recent += taken

    def _tidy(self) -> None:
        """Forget who has been idle longest. Redis knows what it has."""
        for name in list(islice(self._origins, max(0, len(self._origins) - _MOST + _LOOKS))):
            if len(self._origins) <= _MOST:
                break
            if not self._origins[name].underway:
                del self._origins[name]
