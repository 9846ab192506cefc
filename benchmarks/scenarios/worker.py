"""What a delivery costs a worker, beside the bare loop: with and without signing, by RSA and Ed25519, in one
process and in two."""

from __future__ import annotations

from benchmarks.conditions import Conditions
from benchmarks.contenders import Bare, Ours
from benchmarks.figures import Figure, Section, at_least, at_most, ratios
from benchmarks.load import BODY_BYTES, CONCURRENCY, FEW_HOSTS, HOSTS
from benchmarks.machine import cores
from benchmarks.race import Contender, Laps, above, race, say


def run(conditions: Conditions) -> Section:
    deliveries = conditions.pick(10_000, 4_000)
    with conditions.stage() as (service, sink):
        contenders: list[Contender] = [
            Bare(service, sink, 2 * deliveries),
            Ours(service, sink, deliveries),
            Bare(service, sink, 4 * deliveries, signs=False),
            Ours(service, sink, deliveries, signs=False),
            Ours(service, sink, deliveries, algorithm="ed25519"),
            Ours(service, sink, deliveries, processes=2),
            Ours(service, sink, deliveries, hosts=FEW_HOSTS),
        ]
        laps = race(contenders, conditions.rounds, sink, service.database, say)
    title = f"Worker: {deliveries:,} deliveries to {HOSTS} hosts, {BODY_BYTES} bytes, {CONCURRENCY} at a time"
    return Section("worker", title, figures(laps), notes(laps))


def figures(laps: dict[str, Laps]) -> list[Figure]:
    bare, ours, two = laps["bare"], laps["fedsvc"], laps["fedsvc, 2 processes"]
    plain, unsigned = laps["bare, unsigned"], laps["fedsvc, unsigned"]
    edwards, few = laps["fedsvc, ed25519"], laps[f"fedsvc, {FEW_HOSTS} hosts"]
    more = above(unsigned, plain)
    cpu, rate = ratios(ours.cpu_us, bare.cpu_us), ratios(ours.per_second, bare.per_second)
    second = ratios(two.per_second, ours.per_second)
    told = [
        Figure("worker CPU per delivery, RSA-2048, to bare's", "x", cpu, at_most(1.15), 2),
        Figure("worker CPU per delivery above bare's, without signing", "us", more, at_most(40)),
        Figure("deliveries per second, to bare's", "x", rate, at_least(1.2), 2),
        Figure("two processes: deliveries per second, to one's", "x", second, at_least(1.8), 2),
        Figure(
            "Ed25519: CPU per delivery, to RSA's", "x", ratios(edwards.cpu_us, ours.cpu_us), at_most(0.4), 2
        ),
        Figure("Redis CPU per delivery", "us", ours.redis_us, at_most(20)),
        Figure(f"Redis CPU per delivery to {FEW_HOSTS} hosts", "us", few.redis_us),
    ]
    for name, laps_of in laps.items():
        told.append(Figure(f"{name}: deliveries per second", "/s", laps_of.per_second))
        told.append(Figure(f"{name}: CPU per delivery", "us", laps_of.cpu_us))
    return told


def notes(laps: dict[str, Laps]) -> list[str]:
    two = laps["fedsvc, 2 processes"]
    ours, bare = (laps[name].laps[-1].request for name in ("fedsvc", "bare"))
    alike = "the same" if ours.headers == bare.headers else "NOT the same"
    if alike != "the same":
        alike += f": {', '.join(sorted(ours.headers ^ bare.headers))}"
    return [
        f"requests of ours and of bare have {ours.bytes} and {bare.bytes} bytes, their headers are {alike}",
        f"with two processes the {cores()} cores were {max(two.busy):.0%} busy: inboxes, Redis and "
        "workers share them, so that beyond some 90% it is the machine that limits",
        f"with {FEW_HOSTS} hosts most deliveries wait in their host's lane first: 8 may be in flight to one",
    ]
