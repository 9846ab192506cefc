"""Contenders that deliver the same backlog, by turns, measured in the same way.

Every contender finds `deliveries` waiting and starts cold. What it needs to get going (a tenth of them) does
not count. Time is taken where it cannot be flattered: by the inboxes. CPU is that of all the contender's
processes, until all that it sent is settled.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol, Self

from benchmarks.accounting import machine_idle_seconds, tree_cpu_seconds
from benchmarks.machine import cores
from benchmarks.processes import PATIENCE, Sink
from benchmarks.service import Database

#: deliveries per second that any contender makes, on whatever machine
SLOWEST: Final = 50


class Request(NamedTuple):
    """What is the same of all requests of a contender, if inboxes are equally long."""

    headers: frozenset[str]  # names, in lower case
    bytes: int  # body included

    @classmethod
    def of(cls, head: str, length: int) -> Self:
        return cls(frozenset(line.partition(":")[0].lower() for line in head.split("\r\n")[1:]), length)


@dataclass(frozen=True)
class Lap:
    per_second: float
    #: of the contender's processes, microseconds for each delivery
    cpu_us: float
    redis_us: float
    #: share of the whole machine that was busy meanwhile, by whomever
    busy: float
    #: that came more often than they were sent
    repeated: int
    #: connections made, of those with TLS handshakes in full and those that resumed a session
    connections: int
    handshakes: int
    resumed: int
    #: of the last request
    request: Request


class Contender(Protocol):
    name: str
    deliveries: int
    #: the first of them, which get it going
    uncounted: int
    #: whether some may arrive twice, as at-least-once allows
    repeats: bool

    def prepare(self) -> None:
        """Puts the backlog there."""

    def start(self) -> AbstractContextManager[Sequence[int]]:
        """Starts what delivers; its pids, without those of children."""

    def settled(self) -> None:
        """Waits until everything that was sent is settled."""

    def check(self, head: str) -> None:
        """Raises RuntimeError if the last request is not what it should be."""


@dataclass
class Laps:
    """Of one contender."""

    laps: list[Lap] = field(default_factory=list)

    @property
    def per_second(self) -> list[float]:
        return [lap.per_second for lap in self.laps]

    @property
    def cpu_us(self) -> list[float]:
        return [lap.cpu_us for lap in self.laps]

    @property
    def redis_us(self) -> list[float]:
        return [lap.redis_us for lap in self.laps]

    @property
    def busy(self) -> list[float]:
        return [lap.busy for lap in self.laps]


def above(contender: Laps, bare: Laps) -> list[float]:
    """What a contender spends for each delivery that the bare loop does not, microseconds."""
    return [theirs - least for theirs, least in zip(contender.cpu_us, bare.cpu_us, strict=True)]


def lap(contender: Contender, sink: Sink, database: Database) -> Lap:
    """Raises RuntimeError if not all of them arrived, or some twice that may not."""
    deliveries = contender.deliveries
    contender.prepare()
    sink.expect(contender.uncounted, deliveries)
    with contender.start() as pids:
        patience = PATIENCE + deliveries / SLOWEST
        begun = sink.reached(pids[0], patience)
        wall, idle = time.monotonic(), machine_idle_seconds()
        cpu, redis = sum(map(tree_cpu_seconds, pids)), database.cpu_seconds()
        ended = sink.reached(pids[0], patience)
        busy = 1 - (machine_idle_seconds() - idle) / (time.monotonic() - wall) / cores()
        contender.settled()
        cpu, redis = sum(map(tree_cpu_seconds, pids)) - cpu, database.cpu_seconds() - redis
    told = sink.told()
    if told["count"] != deliveries and not (contender.repeats and told["count"] > deliveries):
        raise RuntimeError(f"{contender.name}: {told['count']} of {deliveries} arrived")
    contender.check(told["head"])
    counted = deliveries - contender.uncounted
    each = 1e6 / counted
    return Lap(
        counted / (ended - begun),
        cpu * each,
        redis * each,
        max(0.0, busy),
        told["count"] - deliveries,
        told["connections"],
        told["handshakes"],
        told["resumed"],
        Request.of(told["head"], told["length"]),
    )


def race(
    contenders: list[Contender], rounds: int, sink: Sink, database: Database, say: Callable[[str], None]
) -> dict[str, Laps]:
    """Each contender once a round, in turns that begin with another one each time."""
    laps = {contender.name: Laps() for contender in contenders}
    for number in range(rounds):
        at = number % len(contenders)
        for contender in contenders[at:] + contenders[:at]:
            done = lap(contender, sink, database)
            laps[contender.name].laps.append(done)
            say(
                f"round {number + 1}: {contender.name} {done.per_second:,.0f}/s, {done.cpu_us:,.0f} us CPU, "
                f"{done.redis_us:,.0f} us Redis, machine {done.busy:.0%} busy"
            )
    return laps


def say(line: str) -> None:
    """Progress, beside the table."""
    print(line, file=sys.stderr, flush=True)
