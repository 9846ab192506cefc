"""How quick GetQueueStats is with a million deliveries pending."""

from __future__ import annotations

import time

import redis

from benchmarks.conditions import Conditions
from benchmarks.contenders import numbers
from benchmarks.figures import Figure, Section, at_most, percentile
from benchmarks.load import address

EACH = 50_000
HOSTS = 1000


def run(conditions: Conditions) -> Section:
    pending, calls = conditions.pick(1_000_000, 100_000), conditions.pick(400, 200)
    p50, p99 = [], []
    with (
        conditions.stage(FEDSVC_MAX_FAN_OUT=str(EACH)) as (service, sink),
        redis.Redis.from_url(service.database.url()) as client,
    ):
        before = client.info("memory")["used_memory"]
        sizes = []
        took = 0.0
        for number in range(0, pending, EACH):
            begun = time.monotonic()
            service.fan_out(
                next(numbers),
                [
                    f"http://{address(n % HOSTS)}:{sink.ports[0]}/u/{n}/inbox"
                    for n in range(number, number + EACH)
                ],
            )
            took += time.monotonic() - begun
            sizes.append((client.info("memory")["used_memory"] - before) / (number + EACH))
        if (told := service.client.get_queue_stats().pending) != pending:
            raise RuntimeError(f"{told} pending instead of {pending}")
        for _ in range(conditions.rounds):
            milliseconds = []
            for _ in range(calls):
                begun = time.perf_counter()
                service.client.get_queue_stats()
                milliseconds.append((time.perf_counter() - begun) * 1000)
            p50.append(percentile(milliseconds, 0.5))
            p99.append(percentile(milliseconds, 0.99))
    return Section(
        "stats",
        f"GetQueueStats with {pending:,} deliveries pending, {calls} calls one after the other",
        [
            Figure("p99", "ms", p99, at_most(10), 2),
            Figure("p50", "ms", p50, None, 2),
            Figure("deliveries accepted per second until then, one call at a time", "/s", [pending / took]),
            Figure("Redis memory per pending delivery, 50,000 to an activity", "bytes", sizes, at_most(160)),
        ],
        [
            "seen by a client of its own process, gRPC included",
            f"memory is read after each {EACH:,}: most is used while Redis doubles its tables, least when "
            "they are full",
        ],
    )
