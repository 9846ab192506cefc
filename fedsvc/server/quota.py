"""How much of one origin, and of one caller, may be pending in the whole queue: FEDSVC_ORIGIN_BACKLOG and
FEDSVC_CALLER_BACKLOG. A caller's is that of all origins that it may sign for.

What Redis tells counts for a second, and with it what this process has accepted since then. So
the limit is passed by no more than all other server processes together accept of them in a second.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import islice
from types import TracebackType
from typing import Final, NamedTuple

from fedsvc.errors import CallerBacklogFull, InvalidInput, OriginBacklogFull, QueueUnavailable
from fedsvc.queue.stats import StatsReader
from fedsvc.server.caller import ANYBODY, Caller
from fedsvc.server.limits import Limits

#: seconds for which what Redis told counts
_FRESH_S: Final = 1.0
#: seconds after which to ask again
_RETRY_AFTER_S: Final = 10
#: accounts that are remembered, beside those with calls under way
_MOST: Final = 10_000
#: at how many more is looked for one that is idle
_LOOKS: Final = 8


class Account(NamedTuple):
    """Whose backlog is limited."""

    name: str
    most: int
    #: whose deliveries count; those of all if None
    origins: frozenset[str] | None
    #: whether it is a caller's, not an origin's
    caller: bool = False


class _Held:
    """What is known of an account."""

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

    __slots__ = ("_accounts", "_entered", "_quota", "_wanted", "taken")

    def __init__(self, quota: Quota, accounts: Sequence[Account], wanted: int) -> None:
        self._quota = quota
        self._accounts = accounts
        self._entered: list[Account] = []
        self._wanted = wanted
        self.taken = 0

    async def __aenter__(self) -> Room:
        try:
            for account in self._accounts:
                await self._quota.reserve(account, self._wanted)
                self._entered.append(account)
        except BaseException:
            self._leave(0)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, (QueueUnavailable, asyncio.CancelledError)):
            self.taken = self._wanted  # all of it may be there
        self._leave(self.taken)

    def _leave(self, taken: int) -> None:
        for account in self._entered:
            self._quota.release(account, self._wanted, taken)


class Quota:
    def __init__(
        self, limits: Limits, stats: StatsReader, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limits = limits
        self._stats = stats
        self._clock = clock
        self._held: OrderedDict[tuple[str, bool], _Held] = OrderedDict()

    def room(self, origin: str, wanted: int, known: Caller = ANYBODY) -> Room:
        """To be entered before deliveries of an origin are accepted. That raises OriginBacklogFull or
        CallerBacklogFull if they would be
        too many now, InvalidInput if they always were, and QueueUnavailable."""
        accounts = []
        if most := self._limits.origin_backlog(origin):
            accounts.append(Account(origin, most, frozenset({origin})))
        if most := self._limits.caller_backlog(known):
            accounts.append(Account(known.name, most, known.origins, caller=True))
        return Room(self, accounts, wanted)

    async def reserve(self, account: Account, wanted: int) -> None:
        """For `Room` only."""
        if wanted > account.most:
            whose = "a caller" if account.caller else "an origin"
            raise InvalidInput(
                "inboxes", f"has {wanted} inboxes; {account.most} deliveries of {whose} may wait"
            )
        held = self._held.setdefault((account.name, account.caller), _Held())
        self._held.move_to_end((account.name, account.caller))
        held.underway += wanted
        try:
            async with held.lock:
                if self._clock() - held.read_at >= _FRESH_S:
                    # What ends while Redis is asked may be counted twice, but only until it is asked again.
                    told = held.recent
                    held.pending = await self._pending(account)
                    held.read_at = self._clock()
                    held.recent -= told
            if held.pending + held.recent + held.underway > account.most:
                full = CallerBacklogFull if account.caller else OriginBacklogFull
                has = f"{account.name} has {held.pending + held.recent} deliveries pending"
                raise full(f"{has}; {account.most} may be", _RETRY_AFTER_S)
        except BaseException:
            held.underway -= wanted
            raise
        finally:
            self._tidy()

    def release(self, account: Account, wanted: int, taken: int) -> None:
        """For `Room` only."""
        held = self._held[account.name, account.caller]
        held.underway -= wanted
        held.recent += taken

    async def _pending(self, account: Account) -> int:
        if account.origins is None:
            return (await self._stats.read()).pending
        return sum(await asyncio.gather(*(self._stats.pending_of(origin) for origin in account.origins)))

    def _tidy(self) -> None:
        """Forget who has been idle longest. Redis knows what it has."""
        for name in list(islice(self._held, max(0, len(self._held) - _MOST + _LOOKS))):
            if len(self._held) <= _MOST:
                break
            if not self._held[name].underway:
                del self._held[name]
