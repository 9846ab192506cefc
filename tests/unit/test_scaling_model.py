"""The model behind the sizing table: what holds whatever the costs are, and what can be reckoned by hand."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from benchmarks.scaling.model import Costs, Outcome, Plant, simulate
from benchmarks.scaling.population import Manner, Population, schedule
from benchmarks.scaling.sizing import Load, sized

FREE = Costs(0, 0, 0, 0, 0, 0, 0, 150, 150, 0, 0, 1000)
COSTS = Costs(4e-4, 1e-5, 1e-4, 1e-5, 5e-5, 9e-4, 2e-3, 150, 150, 4e4, 9e7, 1e4)
PLANT = Plant(1, 1, 2, 16, 8)


def run(costs: Costs = COSTS, plant: Plant = PLANT, *, hosts: int = 300, rate: float = 20.0) -> Outcome:
    population = Population(hosts, 7)
    return simulate(population, schedule(population, rate, 20.0, 7), 20.0, plant, costs, 7)


def test_the_same_seed_gives_the_same_and_another_does_not() -> None:
    assert run() == run()
    population = Population(300, 7)
    assert schedule(population, 20.0, 20.0, 7) != schedule(population, 20.0, 20.0, 8)


def test_everything_is_delivered_but_what_is_for_dead_hosts() -> None:
    outcome = run()
    assert outcome.parked_with_dead > 0
    assert outcome.delivered == outcome.deliveries - outcome.parked_with_dead


def test_cores_are_as_busy_as_what_they_did_costs() -> None:
    calm = replace(FREE, worker_delivery=9e-4, redis_accept=1e-5)
    outcome = run(calm)
    tolerance = 0.05  # what is under way at the end
    assert outcome.worker_cores * 20.0 == pytest.approx(outcome.delivered * 9e-4, rel=tolerance)
    assert outcome.redis_cores * 20.0 == pytest.approx(outcome.deliveries * 1e-5, rel=tolerance)


def test_a_host_that_is_well_waits_for_no_host_that_is_not() -> None:
    for seed in (1, 2, 3):
        waits = []
        for well in (True, False):
            population = Population(300, seed, well=well)
            plan = schedule(population, 20.0, 20.0, seed)
            waits.append(simulate(population, plan, 20.0, PLANT, COSTS, seed).percentile(0.5))
        assert waits[1] <= 1.25 * waits[0]


def test_more_than_workers_can_do_makes_a_backlog_that_grows() -> None:
    slow = replace(COSTS, worker_delivery=0.05)
    assert not run(slow).stable
    assert run().stable


def test_a_load_is_given_what_it_takes_and_ten_times_the_load_takes_more() -> None:
    small, large = (sized(Load("x", 2_000, rate, 15.0), COSTS, 1e-5, 7) for rate in (10.0, 100.0))
    assert large.plant.workers > small.plant.workers
    for row in (small, large):
        assert row.outcome.stable
        assert row.outcome.busiest_worker <= 1.0


def test_the_population_has_the_shares_that_it_says() -> None:
    population = Population(20_000, 3)
    shares = Counter(host.manner for host in population.hosts)
    assert shares[Manner.DEAD] / 20_000 == pytest.approx(0.05, abs=0.005)
    assert shares[Manner.SLOW] / 20_000 == pytest.approx(0.03, abs=0.005)
    assert all(host.manner is not Manner.DEAD for host in population.hosts[:10_000]), "the popular half lives"
