"""Whether what waits makes deliveries slower: throughput with 500 to 500,000 waiting, on the same hosts."""

from __future__ import annotations

import os
import signal
import tempfile
from contextlib import ExitStack
from pathlib import Path

from benchmarks.accounting import tree, tree_cpu_seconds
from benchmarks.conditions import Conditions
from benchmarks.contenders import numbers
from benchmarks.figures import Figure, Section, at_least, at_most, ratios
from benchmarks.load import address
from benchmarks.processes import Sink, sink
from benchmarks.service import Database, Service

HOSTS = 1000
#: in one call
_EACH = 50_000
#: as many are added at a time while some are delivered, so that the backlog stays what it is
REFILL = 250
#: of each backlog, at least: turns of the same differ by a tenth, and what is looked for is half of that
_TURNS = 15


class Backlog:
    """A service with so many waiting, whose worker stands still but while it is measured."""

    def __init__(self, waiting: int, stack: ExitStack, conditions: Conditions) -> None:
        self.waiting = waiting
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedsvc-bench-")))
        database = stack.enter_context(Database(directory, conditions.server))
        settings = {"FEDSVC_MAX_FAN_OUT": str(_EACH), "FEDSVC_HOST_START": "8", "FEDSVC_LEASE": "120"}
        self.sink: Sink = stack.enter_context(sink())
        self.service = stack.enter_context(Service(directory, database, **settings))
        self._made = 0
        self.pid = stack.enter_context(self.service.worker())
        self.sink.expect(HOSTS)
        self._add(HOSTS)
        self.sink.reached(self.pid)
        self.service.wait(lambda stats: stats.pending == 0)
        # a process that stands still must go on before it can be ended
        stack.callback(self._tell, signal.SIGCONT)
        self._tell(signal.SIGSTOP)
        for at in range(0, waiting, _EACH):
            self._add(min(_EACH, waiting - at))

    def _add(self, deliveries: int) -> None:
        inboxes = [
            f"http://{address(n % HOSTS)}:{self.sink.ports[0]}/u/{n}/inbox"
            for n in range(self._made, self._made + deliveries)
        ]
        if self.service.fan_out(next(numbers), inboxes) != deliveries:
            raise RuntimeError("not all were accepted")
        self._made += deliveries

    def _tell(self, number: signal.Signals) -> None:
        for pid in tree(self.pid):
            os.kill(pid, number)

    def measure(self, deliveries: int) -> tuple[float, float]:
        """Per second, and CPU microseconds of the worker for each."""
        self.sink.expect(*range(REFILL, deliveries + REFILL + 1, REFILL))
        self._tell(signal.SIGCONT)
        self._add(REFILL)
        begun, cpu = self.sink.reached(self.pid), tree_cpu_seconds(self.pid)
        for _ in range(deliveries // REFILL):
            self._add(REFILL)
            ended = self.sink.reached(self.pid)
        used = tree_cpu_seconds(self.pid) - cpu
        self._tell(signal.SIGSTOP)
        return deliveries / (ended - begun), used / deliveries * 1e6


def run(conditions: Conditions) -> Section:
    levels = [500, 5_000, 50_000] if conditions.quick else [500, 5_000, 50_000, 500_000]
    deliveries = conditions.pick(5_000, 1_000)
    rounds = conditions.rounds if conditions.quick else max(_TURNS, conditions.rounds)
    rates: dict[int, list[float]] = {level: [] for level in levels}
    cpu: dict[int, list[float]] = {level: [] for level in levels}
    with ExitStack() as stack:
        backlogs = [Backlog(level, stack, conditions) for level in levels]
        for turn in range(rounds):
            at = turn % len(backlogs)
            for backlog in backlogs[at:] + backlogs[:at]:
                per_second, us = backlog.measure(deliveries)
                rates[backlog.waiting].append(per_second)
                cpu[backlog.waiting].append(us)
    few, figures = levels[0], []
    for level in levels[1:]:
        beside = f"{level:,} waiting to {few:,}"
        rate, cost = ratios(rates[level], rates[few]), ratios(cpu[level], cpu[few])
        figures.append(Figure(f"deliveries per second, {beside}", "x", rate, at_least(0.95), 2))
        figures.append(Figure(f"CPU per delivery, {beside}", "x", cost, at_most(1.05), 2))
    for level in levels:
        figures.append(Figure(f"{level:,} waiting: deliveries per second", "/s", rates[level]))
        figures.append(Figure(f"{level:,} waiting: worker CPU per delivery", "us", cpu[level]))
    return Section(
        "flat",
        f"Flat cost: {deliveries:,} deliveries a turn, by turns from backlogs of each size",
        figures,
        [f"while some are delivered as many are accepted, {REFILL} at a time; {HOSTS:,} hosts"],
    )
