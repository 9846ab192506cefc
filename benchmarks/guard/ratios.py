"""Ratios of a short run on any machine: what we cost, to what the bare loop or an empty call costs there."""

from __future__ import annotations

from typing import Any, Final

from benchmarks.conditions import Conditions
from benchmarks.contenders import Bare, Ours
from benchmarks.load import FEW_HOSTS
from benchmarks.race import Contender, race, say
from benchmarks.scenarios import fan_out, rpc

#: how many times the reference is let pass: what is to be found is gross, and machines differ
TOLERANCE: Final = 2.0
#: the same where two kinds of work are compared (memory and Lua to a signature), which a machine's cache and
#: its instructions for RSA move apart
TOLERANCE_UNLIKE: Final = 3.0
_UNLIKE: Final = (
    "Redis CPU of a delivery to bare's CPU",
    "server CPU of a fanned-out delivery to bare's CPU",
)
_ROUNDS: Final = 3
_DELIVERIES: Final = 2_000


def measure() -> dict[str, float]:
    """CPU to CPU, never times: other processes may take the cores from both sides of a ratio. Of CPU the
    least of the rounds on either side, since whatever disturbs can only add to it; of bytes the median."""
    conditions = Conditions(_ROUNDS, quick=True)
    with conditions.stage() as (service, sink):
        # few hosts, since so short a run would measure little but connecting to many
        loop = Bare(service, sink, 2 * _DELIVERIES, hosts=FEW_HOSTS)
        rsa = Ours(service, sink, _DELIVERIES, hosts=FEW_HOSTS)
        edwards = Ours(service, sink, _DELIVERIES, hosts=FEW_HOSTS, algorithm="ed25519")
        contenders: list[Contender] = [loop, rsa, edwards]
        laps = race(contenders, _ROUNDS, sink, service.database, say)
    bare = min(laps[loop.name].cpu_us)
    ours = laps[rsa.name]
    accepting = {figure.name: figure for figure in fan_out.run(conditions).figures}
    calls = {figure.name: min(figure.values) for figure in rpc.run(conditions).figures}
    return {
        "worker CPU to bare's": min(ours.cpu_us) / bare,
        "worker CPU to bare's, Ed25519": min(laps[edwards.name].cpu_us) / bare,
        "Redis CPU of a delivery to bare's CPU": min(ours.redis_us) / bare,
        "server CPU of a fanned-out delivery to bare's CPU": min(accepting["server CPU per delivery"].values)
        / bare,
        "Redis bytes of a pending delivery": accepting[
            "Redis memory per pending delivery, all indexes counted"
        ].median,
        "server CPU of QueueActivity to Check's": calls["QueueActivity: server CPU per call"]
        / calls["Check: server CPU per call"],
    }


def tolerance(name: str) -> float:
    return TOLERANCE_UNLIKE if name in _UNLIKE else TOLERANCE


def compare(measured: dict[str, float], reference: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Lines to show, and what is beyond its tolerance."""
    lines, worse = [], []
    for name, now in measured.items():
        then = reference.get(name)
        if then is None:
            worse.append(f"{name}: has no reference")
            continue
        lines.append(f"ratio: {name:<50} {now:8.3f}, reference {then:8.3f}: {now / then:.2f}")
        if now > then * tolerance(name):
            worse.append(f"{name}: {now / then:.2f} times the reference")
    return lines, worse
