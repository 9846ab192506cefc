"""How quickly FanOutActivity is accepted, what it costs the server, and what a pending delivery takes up."""

from __future__ import annotations

import time

import redis

from benchmarks.accounting import cpu_seconds
from benchmarks.conditions import Conditions
from benchmarks.contenders import numbers
from benchmarks.figures import Figure, Section, at_least, at_most
from benchmarks.load import BODY_BYTES

INBOXES = 10_000


def run(conditions: Conditions) -> Section:
    rates, server, redis_us, sizes = [], [], [], []
    with conditions.stage() as (service, _), redis.Redis.from_url(service.database.url()) as client:
        for turn in range(conditions.rounds + 1):
            run = next(numbers)
            inboxes = [f"https://host-{run}-{n:05}.example/inbox" for n in range(INBOXES)]
            memory = client.info("memory")["used_memory"]
            cpu, theirs = cpu_seconds(service.server_pid), service.database.cpu_seconds()
            begun = time.perf_counter()
            accepted = service.fan_out(run, inboxes)
            took = time.perf_counter() - begun
            if accepted != INBOXES:
                raise RuntimeError(f"{accepted} of {INBOXES} were accepted")
            if turn == 0:
                continue  # parses the key, loads the script
            each = 1e6 / INBOXES
            rates.append(INBOXES / took)
            server.append((cpu_seconds(service.server_pid) - cpu) * each)
            redis_us.append((service.database.cpu_seconds() - theirs) * each)
            sizes.append((client.info("memory")["used_memory"] - memory) / INBOXES)
    return Section(
        "fan_out",
        f"FanOutActivity: {BODY_BYTES} bytes to {INBOXES:,} inboxes on as many hosts, one server process",
        [
            Figure("deliveries accepted per second", "/s", rates, at_least(50_000)),
            Figure("server CPU per delivery", "us", server, at_most(15), 1),
            Figure("Redis CPU per delivery, accepting only", "us", redis_us, None, 1),
            Figure("Redis memory per pending delivery, all indexes counted", "bytes", sizes, at_most(160)),
        ],
        ["every host is a new one: what is kept of a host is counted too"],
    )
