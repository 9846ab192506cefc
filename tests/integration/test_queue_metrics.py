"""What Prometheus is told of the queue, and by a worker of what it does."""

from __future__ import annotations

import aiohttp
import pytest
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from servers.front import front
from servers.hosts import put, some_hosts
from servers.queue import Queue, open_queue
from servers.valkey import ValkeyServer

from fedsvc.config import Settings
from fedsvc.domain.delivery import Delivery, DeliveryId, DeliveryState, Priority, Reason
from fedsvc.errors import QueueUnavailable
from fedsvc.queue.host_list import HostList
from fedsvc.queue.stats import StatsReader
from fedsvc.server.queue_metrics import QueueMetrics
from fedsvc.worker import tally
from fedsvc.worker.metrics import Metrics

Told = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def told(text: str) -> Told:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


class Scraped:
    def __init__(self, queue: Queue) -> None:
        self.now = 1000.0
        hosts = HostList(queue.link, queue.keys, queue.settings)
        self.metrics = QueueMetrics(queue.link, queue.stats, hosts, queue.settings, lambda: self.now)
        self.registry = CollectorRegistry()
        self.registry.register(self.metrics)

    def value(self, name: str, **labels: str) -> float | None:
        found = told(generate_latest(self.registry).decode())
        return found.get((f"fedsvc_{name}", tuple(sorted(labels.items()))))


async def test_figures_of_the_queue_are_told(queue: Queue) -> None:
    scraped = Scraped(queue)
    assert scraped.value("queue_up") == 0
    assert scraped.value("queue_depth", priority="urgent", state="ready") is None
    await put(queue, some_hosts(30))
    for n in range(5):
        await queue.enqueue(f"{n}", inbox=n)
    await queue.enqueue("bulk", priority=Priority.BULK)
    await queue.enqueue("later", not_before_ms=await queue.now_ms() + 3_600_000)
    taken = await queue.admit_everywhere(1)
    await queue.settle(taken[0], DeliveryState.DEAD, Reason.GONE)
    await queue.fail(taken[1])
    await scraped.metrics.look()
    stats = await queue.conserved()
    assert scraped.value("queue_up") == 1
    urgent = stats.priorities[Priority.URGENT]
    assert scraped.value("queue_depth", priority="urgent", state="ready") == urgent.ready
    assert scraped.value("queue_depth", priority="urgent", state="in_flight") == urgent.in_flight
    assert scraped.value("queue_depth", priority="bulk", state="ready") is not None
    assert scraped.value("queue_waiting", why="retry") == 1
    assert scraped.value("queue_waiting", why="scheduled") == 1
    assert scraped.value("queue_deliveries_total", state="accepted") == 7
    assert scraped.value("queue_dead_letters") == 1
    assert scraped.value("queue_conserved") == 1
    assert scraped.value("queue_workers") == 1
    assert scraped.value("queue_hosts", state="open") == 10
    lanes = scraped.value("queue_lanes")
    assert lanes is not None
    assert lanes > 20
    used = scraped.value("redis_used_bytes")
    assert used is not None
    assert used > 100_000


@pytest.mark.parametrize(
    ("limit", "warning", "critical"), [(0, 0, 0), (1_000_000_000, 500_000_000, 900_000_000)]
)
async def test_from_which_on_memory_is_short_is_told_as_the_settings_have_it(
    valkey: ValkeyServer, namespace: str, limit: int, warning: int, critical: int
) -> None:
    async with open_queue(valkey.url, namespace, FEDSVC_MEMORY_WARNING="0.5") as queue:
        scraped = Scraped(queue)
        await queue.link.call("CONFIG", "SET", "maxmemory", limit)
        try:
            await scraped.metrics.look()
        finally:
            await queue.link.call("CONFIG", "SET", "maxmemory", 0)
    told = [scraped.value(f"redis_{name}_bytes") for name in ("max", "warning", "critical")]
    assert told == [limit, warning, critical]


async def test_old_figures_are_not_told(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    scraped = Scraped(queue)
    await scraped.metrics.look()

    async def away(_: StatsReader) -> None:
        raise QueueUnavailable("away")

    monkeypatch.setattr(StatsReader, "read", away)
    with pytest.raises(QueueUnavailable):
        await scraped.metrics.look()
    assert scraped.value("queue_up") == 1, "a moment is no outage"
    scraped.now += QueueMetrics.OLD
    assert scraped.value("queue_up") == 0
    assert scraped.value("queue_workers") is None


async def test_hosts_are_looked_at_less_often_than_the_rest(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HostList, "FRESH", 0.0)
    scraped = Scraped(queue)
    await scraped.metrics.look()
    await put(queue, some_hosts(3))
    await scraped.metrics.look()
    assert scraped.value("queue_hosts", state="closed") == 0
    scraped.now += QueueMetrics.HOSTS_EVERY
    await scraped.metrics.look()
    assert scraped.value("queue_hosts", state="closed") == 1


async def test_a_server_tells_them(environment: dict[str, str], queue: Queue) -> None:
    await queue.enqueue("1")
    settings = Settings.from_environment(environment | {"FEDSVC_PARTITIONS": "4"})
    key = ("fedsvc_queue_deliveries_total", (("state", "accepted"),))
    async with front(settings) as server, aiohttp.ClientSession() as http:
        for _ in range(400):
            text = await (await http.get(f"http://{server.http}/metrics")).text()
            if "fedsvc_queue_up 1.0" in text:
                break
        assert told(text)[key] == 1
        assert "fedsvc_build_info{" in text
    assert REGISTRY.get_sample_value("fedsvc_queue_up") is None, "who has stopped tells nothing"


def test_types_that_are_not_known_are_one_and_attempts_are_counted() -> None:
    def value(name: str, **labels: str) -> float:
        return REGISTRY.get_sample_value(name, labels) or 0.0

    def deliveries() -> float:
        return value("fedsvc_deliveries_total", state="dead", type="other")

    tally.tell()  # what other tests have left
    before, attempts = deliveries(), value("fedsvc_delivery_attempts_sum")
    for n in range(3):
        Metrics().finished(
            Delivery(
                DeliveryId(0, 1), DeliveryState.DEAD, "https://a/1", f"Made-up-{n}", "https://a", "https://b/inbox",
                "b", "a", "k", Priority.BULK, 2, Reason.GONE, 410,
            ),
            1000,
        )  # fmt: skip
    tally.tell()
    assert deliveries() == before + 3
    assert value("fedsvc_delivery_attempts_sum") == attempts + 6
    Metrics().first(-5)  # clocks of two machines
