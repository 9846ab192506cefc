"""What Redis spends on a delivery if all that it does is a queue on streams: the floor under our own figure.

Deliveries are handed out to a consumer group 32 at a time, acknowledged and deleted, and each leaves an
outcome of the usual size in another stream, which is read once, as the archive does. Native commands, as many
in a pipeline as there are; no script, no record of a delivery or a host, no bell, no counter.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, Final

import redis

from benchmarks.conditions import Conditions
from benchmarks.figures import Figure, Section
from benchmarks.service import Database

#: handed out, and settled, in one pipeline
BATCH: Final = 32
#: bytes of an outcome with one attempt
OUTCOME: Final = bytes(450)


def run(conditions: Conditions) -> Section:
    deliveries = conditions.pick(10_000, 4_000)
    costs = []
    with (
        tempfile.TemporaryDirectory(prefix="fedsvc-bench-") as directory,
        Database(Path(directory), conditions.server) as database,
        closing(redis.Redis.from_url(database.url())) as client,
    ):
        for _ in range(conditions.rounds + 1):
            costs.append(_cost(client, database, deliveries))
    return Section(
        "streams",
        f"Redis CPU of a queue on streams and nothing else: {deliveries:,} deliveries, {BATCH} in a pipeline",
        [Figure("Redis CPU per delivery", "us", costs[1:], None, 1)],
        ["handed out, acknowledged, deleted; an outcome of 450 bytes is written, and read once"],
    )


def _cost(client: redis.Redis, database: Database, deliveries: int) -> float:
    """Microseconds."""
    client.delete("ready", "outcomes")
    client.xgroup_create("ready", "workers", mkstream=True)
    for some in _batches(range(deliveries)):
        _all_of(client, [("XADD", "ready", "*", "d", 1_764_000_000_000_000 + number) for number in some])
    before = database.cpu_seconds()
    handed = 0
    while handed < deliveries:
        taken: Any = client.xreadgroup("workers", "worker", {"ready": ">"}, count=BATCH)
        ids = [name for name, _ in taken[0][1]]
        handed += len(ids)
        outcomes = [("XADD", "outcomes", "*", "d", 1, "s", 6, "o", OUTCOME) for _ in ids]
        _all_of(client, [("XACK", "ready", "workers", *ids), ("XDEL", "ready", *ids), *outcomes])
    entries: Any = client.xrange("outcomes", count=1000)
    while entries:
        entries = client.xrange("outcomes", f"({entries[-1][0].decode()}", count=1000)
    return (database.cpu_seconds() - before) / deliveries * 1e6


def _batches(numbers: Sequence[int]) -> Iterator[list[int]]:
    left = iter(numbers)
    while some := list(islice(left, BATCH)):
        yield some


def _all_of(client: redis.Redis, commands: Sequence[tuple[Any, ...]]) -> None:
    with client.pipeline(transaction=False) as pipeline:
        for command in commands:
            pipeline.execute_command(*command)  # type: ignore[no-untyped-call]
        pipeline.execute()
