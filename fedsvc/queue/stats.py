"""What the queue holds and does, in figures. Every call is O(1) in the backlog."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from fedsvc.config import Settings
from fedsvc.domain.activity_types import type_name
from fedsvc.domain.delivery import Priority, Reason
from fedsvc.queue.keys import Keys
from fedsvc.queue.link import Link
from fedsvc.queue.rates import Rates, RecentCounts
from fedsvc.queue.script import Script

RATE_WINDOWS_S: Final = (60, 300)
#: upper bounds of the retry histogram, seconds
DUE_WITHIN_S: Final = (0, 60, 300, 900, 3600, 21_600, 86_400)
TERMINAL: Final = ("delivered", "dead", "purged", "cancelled", "superseded", "expired")


@dataclass(frozen=True, slots=True)
class PriorityStats:
    ready: int
    in_flight: int
    #: milliseconds that the oldest delivery that no worker has is waiting; 0 if none waits. One that went on
    #: from its origin's line counts from then, and of many lines only the first 16 are looked at
    oldest_age_ms: int


@dataclass(frozen=True, slots=True)
class QueueStats:
    now_ms: int
    partitions: int
    counters: Mapping[str, int]
    priorities: Mapping[Priority, PriorityStats]
    retry: int
    scheduled: int
    #: wait for their host, or for others before them in order
    parked: int
    #: hosts whose circuit is not closed
    open_circuits: int
    #: of those parked, the ones whose host is such a one; all that are in SQL count
    parked_behind_circuits: int
    due: int
    #: milliseconds since the epoch; None if nothing waits
    next_due_ms: int | None
    dead_letters: int
    consumers: int
    rates: Sequence[Rates]
    #: outcomes that the archive has not committed
    archive_backlog: int
    #: milliseconds for which the oldest of them has waited; 0 if there is none
    archive_lag_ms: int
    #: pending deliveries of each origin that has any
    origins: Mapping[str, int]

    @property
    def ready(self) -> int:
        return sum(p.ready for p in self.priorities.values())

    @property
    def in_flight(self) -> int:
        return sum(p.in_flight for p in self.priorities.values())

    @property
    def pending(self) -> int:
        return self.ready + self.in_flight + self.retry + self.scheduled + self.parked

    def counter(self, name: str) -> int:
        return self.counters.get(name, 0)

    @property
    def conserved(self) -> bool:
        """Whether accepted = delivered + dead + purged + cancelled + superseded + expired + pending."""
        return self.counter("accepted") == self.pending + sum(self.counter(name) for name in TERMINAL)


@dataclass(frozen=True, slots=True)
class RetryStats:
    retry: int
    scheduled: int
    due: int
    next_due_ms: int | None
    by_type: Mapping[str, int]
    by_attempt: Mapping[int, int]
    by_reason: Mapping[Reason, int]
    #: how many are due within DUE_WITHIN_S and not within the bound before; the last: beyond all
    histogram: Sequence[int]


@dataclass(slots=True)
class _Sum:
    now_ms: int = 0
    counters: Counter[str] = field(default_factory=Counter)
    delayed: int = 0
    due: int = 0
    dead: int = 0
    consumers: int = 0
    next_due: list[int] = field(default_factory=list)
    lag_ms: int = 0
    ready: Counter[int] = field(default_factory=Counter)
    flying: Counter[int] = field(default_factory=Counter)
    age_ms: dict[int, int] = field(default_factory=dict)
    origins: Counter[str] = field(default_factory=Counter)

    def add(self, answer: Sequence[Any]) -> int:
        """Of one partition. Returns how many it has ever accepted."""
        now, counters, _, delayed, dead, next_due, due, consumers, unarchived = answer[:9]
        self.now_ms = max(self.now_ms, int(now))
        numbers = {k.decode(): int(v) for k, v in zip(counters[::2], counters[1::2], strict=True)}
        self.counters.update(numbers)
        self.delayed += delayed
        self.due += due
        self.dead += dead
        self.consumers = max(self.consumers, consumers)
        if float(next_due) >= 0:
            self.next_due.append(int(float(next_due)))
        if int(unarchived):
            self.lag_ms = max(self.lag_ms, int(now) - int(unarchived) // 1000)
        for priority in Priority:
            entries, flying, oldest = answer[9 + 3 * (priority - 1) : 12 + 3 * (priority - 1)]
            self.ready[priority] += entries - flying + numbers.get(f"line:{priority:d}", 0)
            self.flying[priority] += flying
            if int(oldest):
                age = max(0, int(now) - int(oldest) // 1000)
                self.age_ms[priority] = max(self.age_ms.get(priority, 0), age)

        # Those out of lanes are counted by priority; should that be off, their sum is right all the same.
        woken = answer[18]
        for priority in (Priority.URGENT, Priority.NORMAL):
            part = max(0, min(woken, numbers.get(f"woken:{priority:d}", 0)))
            self.flying[priority] += part
            woken -= part
        self.flying[Priority.BULK] += woken
        for origin, number in zip(answer[19][::2], answer[19][1::2], strict=True):
            self.origins[origin.decode()] += int(number)
        return numbers.get("accepted", 0)


class StatsReader:
    def __init__(self, link: Link, keys: Keys, settings: Settings) -> None:
        self._link = link
        self._keys = keys
        self._partitions = settings.partitions
        self._stats = Script("stats")
        self._recent = RecentCounts(settings.partitions)
        #: how many times something was noted there
        self._noted = 0

    async def read(self) -> QueueStats:
        """Raises QueueUnavailable."""
        total = await self._sum()
        scheduled = total.counters["scheduled"]
        return QueueStats(
            now_ms=total.now_ms,
            partitions=self._partitions,
            counters=dict(total.counters),
            priorities={
                p: PriorityStats(total.ready[p], total.flying[p], total.age_ms.get(p, 0)) for p in Priority
            },
            retry=total.delayed - scheduled,
            scheduled=scheduled,
            parked=total.counters["parked"],
            open_circuits=total.counters["open"],
            # Lanes may hold names of deliveries that have ended.
            parked_behind_circuits=min(
                total.counters["parked"], total.counters["shut"] + total.counters["spilled"]
            ),
            due=total.due,
            next_due_ms=min(total.next_due, default=None),
            dead_letters=total.dead,
            consumers=total.consumers,
            rates=[self._recent.per_second(total.now_ms, window_s) for window_s in RATE_WINDOWS_S],
            archive_backlog=total.counters["outcomes"] - total.counters["archived"],
            archive_lag_ms=total.lag_ms,
            origins=dict(total.origins),
        )

    async def pending_of(self, origin: str) -> int:
        """Deliveries of an origin that have not ended. Raises QueueUnavailable."""
        slots = [self._keys.partition(p).backlog for p in range(self._partitions)]
        counts = await asyncio.gather(*(self._link.call("HGET", slot, origin) for slot in slots))
        return sum(int(n or 0) for n in counts)

    async def read_retries(self) -> RetryStats:
        """Raises QueueUnavailable."""
        total = await self._sum()
        bounds = [total.now_ms + 1000 * s for s in DUE_WITHIN_S]
        edges = ["-inf", *(f"({b}" for b in bounds)]
        tops = [*map(str, bounds), "+inf"]
        calls = [
            self._link.call("ZCOUNT", self._keys.partition(p).retry, low, high)
            for p in range(self._partitions)
            for low, high in zip(edges, tops, strict=True)
        ]
        counts = await asyncio.gather(*calls)
        histogram = [sum(counts[i :: len(tops)]) for i in range(len(tops))]
        by_type: dict[str, int] = {}
        by_attempt: dict[int, int] = {}
        by_reason: dict[Reason, int] = {}
        for name, number in total.counters.items():
            parts = name.split(":")
            if parts[0] != "retry" or not number:
                continue
            code = int(parts[2])
            if parts[1] == "type":
                by_type[type_name(code)] = number
            elif parts[1] == "attempt":
                by_attempt[code] = number
            elif parts[1] == "reason" and code:
                reason = Reason(code)
                by_reason[reason] = by_reason.get(reason, 0) + number
        scheduled = total.counters["scheduled"]
        return RetryStats(
            total.delayed - scheduled,
            scheduled,
            total.due,
            min(total.next_due, default=None),
            by_type,
            by_attempt,
            by_reason,
            histogram,
        )

    async def _sum(self) -> _Sum:
        total, noted = _Sum(), self._noted
        answers = await asyncio.gather(
            *(
                self._link.run(self._stats, self._keys.partition(p).prefix, [self._recent.since(p)])
                for p in range(self._partitions)
            )
        )
        # Of two that are under way at once the later may be answered first. The other's figures, lower than
        # those, would look as if Redis had lost what it had, and what was noted would be forgotten.
        alone = self._noted == noted
        for partition, answer in enumerate(answers):
            newest, counts = answer[2]
            accepted = total.add(answer)
            if alone:
                self._recent.note(partition, accepted, int(newest), counts)
        self._noted += alone
        return total
