"""Other queues at the same work, beside ours and the bare loop."""

from __future__ import annotations

import statistics

from benchmarks.conditions import Conditions
from benchmarks.contenders import Bare, Ours
from benchmarks.figures import Figure, Section, at_least, ratios
from benchmarks.load import CONCURRENCY, HOSTS
from benchmarks.peers import node
from benchmarks.peers.contender import PEERS, PeerContender, available, versions
from benchmarks.race import Contender, Laps, above, race, say


def run(conditions: Conditions) -> Section:
    deliveries = conditions.pick(4_000, 1_000)
    title = f"Other queues: {deliveries:,} deliveries to {HOSTS} hosts, RSA-2048, {CONCURRENCY} at a time"
    if not conditions.peers or not available():
        return Section("peers", title, notes=["left out: they are not installed, `make bench` does it"])
    with conditions.stage() as (service, sink):
        peers = [PeerContender(name, service, sink, deliveries) for name in PEERS]
        if node.available():
            peers.append(node.Fedify(service, sink))
        contenders: list[Contender] = [
            Bare(service, sink, 2 * deliveries),
            Ours(service, sink, 2 * deliveries),
            *peers,
        ]
        laps = race(contenders, conditions.rounds, sink, service.database, say)
    return Section("peers", title, figures(laps), notes(laps))


def figures(laps: dict[str, Laps]) -> list[Figure]:
    bare, ours = laps["bare"], laps["fedsvc"]
    peers = [name for name in laps if name not in ("bare", "fedsvc")]
    best = max(peers, key=lambda name: statistics.median(laps[name].per_second))
    lead = ratios(ours.per_second, laps[best].per_second)
    told = [Figure(f"deliveries per second, to the best peer's ({best})", "x", lead, at_least(2.0), 2)]
    cheapest = min(peers, key=lambda name: statistics.median(laps[name].cpu_us))
    added, least = above(ours, bare), above(laps[cheapest], bare)
    told.append(
        Figure(
            f"CPU that ours adds to bare's, to what the leanest peer adds ({cheapest})",
            "x",
            ratios(added, least),
            None,
            2,
        )
    )
    for name in laps:
        told += [
            Figure(f"{name}: deliveries per second", "/s", laps[name].per_second),
            Figure(f"{name}: CPU per delivery", "us", laps[name].cpu_us),
            Figure(
                f"{name}: CPU per delivery, to bare's", "x", ratios(laps[name].cpu_us, bare.cpu_us), None, 2
            ),
            Figure(f"{name}: Redis CPU per delivery", "us", laps[name].redis_us),
        ]
    return told


def notes(laps: dict[str, Laps]) -> list[str]:
    repeated = [f"{name} {sum(lap.repeated for lap in laps_of.laps)}" for name, laps_of in laps.items()]
    fedify = (
        f"{node.version()}: {node.DELIVERIES} deliveries, since each look into its queue reads all that waits"
        if "fedify" in laps
        else "fedify is left out: its packages could not be installed"
    )
    return [
        versions(),
        fedify,
        f"one worker process each; celery has a child for each core. Sent twice: {', '.join(repeated)}",
        "peers sign on their loop, as the bare loop does, and know no hosts, retries by type or archive",
    ]
