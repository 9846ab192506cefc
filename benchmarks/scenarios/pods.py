"""Whether a second worker process gives as much again where it finds the CPU that the first one has: each,
with the process that signs for it, is held to a share of a core, so that inboxes and Redis are in nobody's
way.

On a machine of few cores, one worker process that is held to nothing leaves no core for a second.
"""

from __future__ import annotations

from typing import Final

from benchmarks.conditions import Conditions
from benchmarks.contenders import Pods
from benchmarks.figures import Figure, Section, at_least, ratios
from benchmarks.load import HOSTS
from benchmarks.machine import cores
from benchmarks.quota import PERIOD, Unlimited, limited
from benchmarks.race import Contender, race, say

#: of a core, for each process: two leave a machine of two cores three quarters idle but for inboxes and Redis
SHARE: Final = 0.25


def run(conditions: Conditions) -> Section:
    deliveries = conditions.pick(5_000, 3_000)
    section = Section("pods", f"Worker processes held to {SHARE:g} of a core each: {deliveries:,} deliveries")
    try:
        with limited(SHARE):
            pass
    except Unlimited as why:
        section.notes.append(f"not measured: the kernel holds nobody to a share of a core here ({why})")
        return section
    with conditions.stage() as (service, sink):
        one, two = (Pods(service, sink, deliveries, pods=pods, share=SHARE) for pods in (1, 2))
        one.uncounted = two.uncounted = 2_000
        contenders: list[Contender] = [one, two]
        laps = race(contenders, conditions.rounds, sink, service.database, say)
    single, double = laps[one.name], laps[two.name]
    section.figures = [
        Figure(
            "two processes: deliveries per second, to one's", "x",
            ratios(double.per_second, single.per_second), at_least(1.8), 2,
        ),
        Figure(
            "two processes: CPU per delivery, to one's", "x", ratios(double.cpu_us, single.cpu_us), None, 2
        ),
        *(
            figure
            for name, told in laps.items()
            for figure in (
                Figure(f"{name}: deliveries per second", "/s", told.per_second),
                Figure(f"{name}: CPU per delivery", "us", told.cpu_us),
            )
        ),
    ]  # fmt: skip
    section.notes = [
        f"RSA-2048, {HOSTS:,} hosts; each `fedsvc worker`, its supervisor and the process that signs for it "
        f"get {SHARE * PERIOD / 1000:g} ms of CPU in {PERIOD / 1000:g}, by the kernel's bandwidth control",
        f"of {deliveries:,} the first {one.uncounted:,} do not count: until then processes start, slowly",
        f"with two the {cores()} cores were {max(double.busy):.0%} busy",
    ]
    return section
