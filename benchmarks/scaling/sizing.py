"""What a load takes: so many servers, masters and workers that none is too busy, by the model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.load import BODY_BYTES
from benchmarks.scaling.model import Costs, Outcome, Plant, simulate
from benchmarks.scaling.population import Manner, Population, schedule
from fedsvc.config import Settings
from fedsvc.worker.transport import KEEP_ALIVE_S

#: share of a core that a process may be busy on average: peaks and restarts need the rest
BUSY: Final = 0.6
#: share of a worker's places for deliveries under way (FEDSVC_CONCURRENCY) that may be taken on average
TAKEN: Final = 0.7
DEFAULTS: Final = Settings.from_environment({})
#: tries with more workers and masters each time
TRIES: Final = 6
DAY_S: Final = 86_400
WARM_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Load:
    name: str
    hosts: int
    per_second: float
    #: seconds that are simulated
    seconds: float


LOADS: Final = (
    Load("small instance", 300, 0.2, 600.0),
    Load("medium instance", 3_000, 5.0, 120.0),
    Load("large instance", 10_000, 50.0, 60.0),
    Load("very large instance", 30_000, 250.0, 40.0),
    Load("30,000 hosts, 1,000/s", 30_000, 1_000.0, 30.0),
)


@dataclass(frozen=True, slots=True)
class Sized:
    load: Load
    plant: Plant
    outcome: Outcome
    #: share of the busiest master that asking for nothing takes
    polling: float
    redis_bytes: float
    parked_bytes_a_day: float
    worker_bytes: float

    @property
    def per_second(self) -> float:
        return self.outcome.deliveries / self.load.seconds


def sized(load: Load, costs: Costs, poll: float, seed: int) -> Sized:
    """`poll`: CPU seconds of Redis a second that a partition with nothing in it costs."""
    population = Population(load.hosts, seed)
    plan = schedule(population, load.per_second, load.seconds, seed)
    deliveries = sum(len(recipients) for _, recipients in plan) / load.seconds
    server = load.per_second * costs.server_call + deliveries * costs.server_delivery
    handshakes = min(deliveries, load.hosts / KEEP_ALIVE_S)
    worker = deliveries * costs.worker_delivery + handshakes * costs.worker_handshake
    places = _places(population, plan, load.seconds) / DEFAULTS.concurrency
    workers, masters = max(1, math.ceil(worker / BUSY), math.ceil(places / TAKEN)), 1
    concurrency = _host_concurrency(population, plan, load.seconds)
    for _ in range(TRIES):
        partitions = max(16, 2 ** math.ceil(math.log2(4 * max(workers, masters))))
        plant = Plant(max(1, math.ceil(server / BUSY)), masters, workers, partitions, concurrency)
        outcome = simulate(population, plan, load.seconds, plant, costs, seed, warm=WARM_S)
        polling = poll * partitions / masters
        tired = outcome.busiest_worker > 1.25 * BUSY or not outcome.stable
        full = outcome.busiest_master + polling > BUSY
        if not tired and not full:
            break
        if tired:
            workers += max(1, workers // 4)
        if full:
            needed = (outcome.redis_cores + polling * masters) / BUSY
            masters = max(masters + 1, math.ceil(needed))
    return _told(load, plant, outcome, polling, costs)


def _places(population: Population, plan: Sequence[tuple[float, list[int]]], seconds: float) -> float:
    """How many deliveries are under way to hosts that answer, on average."""
    return (
        sum(
            population.hosts[index].answer_s
            for _, recipients in plan
            for index in recipients
            if population.hosts[index].manner is not Manner.DEAD
        )
        / seconds
    )


def _host_concurrency(population: Population, plan: Sequence[tuple[float, list[int]]], seconds: float) -> int:
    """What it takes that the host which is well, popular and far gets all that is for it; a power of two."""
    counts = Counter(index for _, recipients in plan for index in recipients)
    needed = max(
        count / seconds * population.hosts[index].answer_s
        for index, count in counts.items()
        if population.hosts[index].manner is Manner.WELL
    )
    return max(DEFAULTS.host_concurrency, int(2 ** math.ceil(math.log2(needed / BUSY))))


def _told(load: Load, plant: Plant, outcome: Outcome, polling: float, costs: Costs) -> Sized:
    finished = outcome.delivered / load.seconds * DEFAULTS.outcome_retention * costs.finished_bytes
    waiting = max(outcome.backlog) * (costs.pending_bytes + BODY_BYTES)
    # An activity's body is stored once in a partition: with few recipients, nearly once for each delivery.
    parked = outcome.parked_with_dead / load.seconds * DAY_S * (costs.pending_bytes + BODY_BYTES)
    each = outcome.connections / plant.workers * costs.connection_bytes
    return Sized(load, plant, outcome, polling, finished + waiting, parked, costs.worker_bytes + each)


def table(rows: list[Sized], *, markdown: bool) -> str:
    heads = (
        "load", "hosts", "activities/s", "deliveries/s", "servers", "workers", "Redis masters", "partitions",
        "FEDSVC_HOST_CONCURRENCY",
        "busiest worker", "busiest master", "call to POST p50", "p99", "connections", "memory of a worker",
        "Redis, without parked", "parked for dead hosts, a day",
    )  # fmt: skip
    lines = [
        (
            r.load.name, f"{r.load.hosts:,}", f"{r.load.per_second:,g}", f"{r.per_second:,.0f}",
            str(r.plant.servers), str(r.plant.workers), str(r.plant.masters), str(r.plant.partitions),
            str(r.plant.host_concurrency),
            f"{r.outcome.busiest_worker:.0%}", f"{r.outcome.busiest_master + r.polling:.0%}",
            f"{r.outcome.percentile(0.5) * 1e3:,.0f} ms", f"{r.outcome.percentile(0.99) * 1e3:,.0f} ms",
            f"{r.outcome.connections:,}", _size(r.worker_bytes), _size(r.redis_bytes),
            _size(r.parked_bytes_a_day),
        )
        for r in rows
    ]  # fmt: skip
    if markdown:
        # A load is a column: there are fewer of them.
        turned = list(zip(heads, *lines, strict=True))
        text = [f"| {' | '.join(row)} |" for row in turned]
        return "\n".join([text[0], "|" + "---|" * (len(lines) + 1), *text[1:]])
    return "\n\n".join(
        "\n".join(f"{head:<30} {cell:>14}" for head, cell in zip(heads, line, strict=True)) for line in lines
    )


def poll_cost(idle: Mapping[str, float], partitions: int = 16) -> float:
    """Of one partition, with as many workers as there may be: its own and its deputy, which looks at it twice
    a second, are there with two, and all others together look at it half as often."""
    looks = max(0.0, idle["redis_two"] - idle["redis_one"])
    return (idle["redis_two"] + looks / 2) / partitions


def _size(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:,.0f} {unit}" if count >= 10 or unit == "B" else f"{count:,.1f} {unit}"
        count /= 1000
    raise AssertionError


def told(row: Sized) -> dict[str, Any]:
    """For the file of results."""
    return {
        "load": row.load.name, "hosts": row.load.hosts, "activities_per_second": row.load.per_second,
        "deliveries_per_second": row.per_second, "servers": row.plant.servers, "workers": row.plant.workers,
        "masters": row.plant.masters, "partitions": row.plant.partitions,
        "host_concurrency": row.plant.host_concurrency,
        "busiest_worker": row.outcome.busiest_worker, "busiest_master": row.outcome.busiest_master,
        "p50_s": row.outcome.percentile(0.5), "p99_s": row.outcome.percentile(0.99),
        "backlog": row.outcome.backlog, "connections": row.outcome.connections,
        "worker_bytes": row.worker_bytes, "redis_bytes": row.redis_bytes,
        "parked_bytes_a_day": row.parked_bytes_a_day, "stable": row.outcome.stable,
    }  # fmt: skip
