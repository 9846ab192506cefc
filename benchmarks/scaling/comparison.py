"""The model beside a real run of the same schedule: what it says, what is, and the error."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import orjson

from benchmarks.accounting import tree_cpu_seconds
from benchmarks.figures import percentile
from benchmarks.load import activity, address, key_id, pem
from benchmarks.processes import line_of, process
from benchmarks.scaling.model import Costs, Outcome, Plant, simulate
from benchmarks.scaling.population import Population, schedule
from benchmarks.service import Database, Service

HOSTS: Final = 300
PER_SECOND: Final = 25.0
SECONDS: Final = 30.0
WORKERS: Final = 2
PARTITIONS: Final = 16


@dataclass(frozen=True, slots=True)
class Compared:
    name: str
    unit: str
    model: float
    real: float

    @property
    def error(self) -> float:
        """Of the model, as part of what is real."""
        return self.model / self.real - 1 if self.real else 0.0


def compare(costs: Costs, seed: int) -> list[Compared]:
    """Two runs. By the first, at half the rate and by another schedule, costs are corrected for the small
    batches of a service with little to do; the second is predicted."""
    first, second = seed + 1, seed
    real = _real(_plan(PER_SECOND / 2, first), first)
    said = _said(_plan(PER_SECOND / 2, first), costs, first)
    factors = Factors(
        real.worker_cpu / SECONDS / said.worker_cores,
        real.redis_cpu / SECONDS / said.redis_cores,
        real.server_cpu / SECONDS / said.server_cores,
    )
    said = _said(_plan(PER_SECOND, second), factors.applied(costs), second)
    real = _real(_plan(PER_SECOND, second), second)
    pairs = (
        ("deliveries per second", "/s", said.deliveries / SECONDS, real.deliveries / SECONDS),
        ("workers' CPU", "ms/s", said.worker_cores * 1e3, real.worker_cpu / SECONDS * 1e3),
        ("Redis's CPU", "ms/s", said.redis_cores * 1e3, real.redis_cpu / SECONDS * 1e3),
        ("server's CPU", "ms/s", said.server_cores * 1e3, real.server_cpu / SECONDS * 1e3),
        ("call to POST, p50", "ms", said.percentile(0.5) * 1e3, real.percentile(0.5) * 1e3),
        ("call to POST, p90", "ms", said.percentile(0.9) * 1e3, real.percentile(0.9) * 1e3),
        ("call to POST, p99", "ms", said.percentile(0.99) * 1e3, real.percentile(0.99) * 1e3),
    )
    return [Compared(*pair) for pair in pairs]


@dataclass(frozen=True, slots=True)
class Factors:
    """What small batches cost, to the costs of full ones."""

    worker: float
    redis: float
    server: float

    def applied(self, costs: Costs) -> Costs:
        return replace(
            costs,
            worker_delivery=costs.worker_delivery * self.worker,
            redis_call=costs.redis_call * self.redis,
            redis_accept=costs.redis_accept * self.redis,
            redis_deliver=costs.redis_deliver * self.redis,
            server_call=costs.server_call * self.server,
            server_delivery=costs.server_delivery * self.server,
        )


def _population(seed: int) -> Population:
    population = Population(HOSTS, seed, well=True)
    for number, host in enumerate(population.hosts):
        # the partition follows from the name, and the real hosts are addresses
        population.hosts[number] = replace(host, name=address(number))
    return population


def _plan(per_second: float, seed: int) -> list[tuple[float, list[int]]]:
    return schedule(_population(seed), per_second, SECONDS, seed)


def _said(plan: list[tuple[float, list[int]]], costs: Costs, seed: int) -> Outcome:
    plant = Plant(1, 1, WORKERS, PARTITIONS, 8)
    return simulate(_population(seed), plan, SECONDS, plant, costs, seed, tls=False)


@dataclass(frozen=True, slots=True)
class Real:
    deliveries: int
    #: seconds, above what the same processes use up in as long a time without anything to do
    worker_cpu: float
    redis_cpu: float
    server_cpu: float
    to_post: list[float]

    def percentile(self, part: float) -> float:
        return percentile(self.to_post, part)


def _real(plan: list[tuple[float, list[int]]], seed: int) -> Real:
    command = [sys.executable, "-m", "benchmarks.scaling.remotes", str(HOSTS), str(seed)]
    with (
        tempfile.TemporaryDirectory(prefix="fedsvc-bench-") as directory,
        Database(Path(directory)) as database,
        process(command, os.environ) as remotes,
        Service(
            Path(directory), database, FEDSVC_PARTITIONS=str(PARTITIONS), FEDSVC_CONCURRENCY="256"
        ) as service,
        service.worker(WORKERS) as pid,
        ThreadPoolExecutor(16) as pool,
    ):
        port = int(line_of(remotes))
        service.wait(lambda s: s.consumers >= WORKERS)

        def used() -> tuple[float, float, float]:
            server = tree_cpu_seconds(service.server_pid)
            return tree_cpu_seconds(pid), database.cpu_seconds(), server

        time.sleep(2.0)  # workers have found each other
        resting = used()
        time.sleep(SECONDS / 3)
        rested = [3 * (now - then) for now, then in zip(used(), resting, strict=True)]
        called: dict[int, float] = {}

        def call(number: int, recipients: list[int]) -> None:
            called[number] = time.monotonic()
            inboxes = [f"http://{address(n)}:{port}/inbox" for n in recipients]
            service.client.fan_out(
                activity(number), inboxes, private_key=pem("rsa"), key_id=key_id("rsa"), priority="normal"
            )

        before, begun = used(), time.monotonic()
        for number, (at, recipients) in enumerate(plan):
            time.sleep(max(0.0, begun + at - time.monotonic()))
            pool.submit(call, number, recipients)
        total = sum(len(recipients) for _, recipients in plan)
        service.wait(lambda s: s.delivered >= total)
        cpu = [now - then for now, then in zip(used(), before, strict=True)]
        assert remotes.stdin is not None
        remotes.stdin.close()
        came: dict[str, float] = orjson.loads(line_of(remotes))
    assert len(came) == total, f"{len(came)} of {total}"
    waits = [at - called[int(name.split()[1])] for name, at in came.items()]
    above = [busy - rest for busy, rest in zip(cpu, rested, strict=True)]
    return Real(total, above[0], above[1], above[2], waits)
