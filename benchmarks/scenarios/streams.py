"""What Redis spends on a delivery while it has a core of its own: a queue on streams and nothing else, which
is the floor, and beside it our transitions, with hosts, circuits, lanes, limits, records and outcomes.

Of the floor, deliveries are handed out to a consumer group, as many at a time as a worker takes,
acknowledged and deleted, and each leaves an outcome of the usual size in another stream, which is read once,
as the archive does. Native commands, as many in a pipeline as there are; no script, no record of deliveries
or hosts, no bell, no count.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import redis

from benchmarks.conditions import Conditions
from benchmarks.figures import Figure, Section, at_most, ratios
from benchmarks.load import HOSTS
from benchmarks.service import Database
from benchmarks.transitions import cost
from fedsvc.worker.processor import Processor

#: handed out, and settled, in one pipeline or script: as many as a worker takes
BATCH: Final = Processor.BATCH
#: of our own transitions, and for comparison half as many and twice as many
BATCHES: Final = (BATCH, BATCH // 2, 2 * BATCH)
#: bytes of an outcome with one attempt
OUTCOME: Final = bytes(450)


def run(conditions: Conditions) -> Section:
    deliveries = conditions.pick(10_000, 4_000)
    floor: list[float] = []
    ours: dict[int, list[float]] = {batch: [] for batch in BATCHES}
    with (
        tempfile.TemporaryDirectory(prefix="fedsvc-bench-") as directory,
        Database(Path(directory), conditions.server) as database,
        closing(redis.Redis.from_url(database.url())) as client,
    ):
        for number in range(conditions.rounds + 1):
            floor.append(_cost(client, database, deliveries))
            for batch in BATCHES:
                client.flushdb()
                ours[batch].append(cost(database, deliveries, batch, f"n{number}"))
    return Section(
        "streams",
        f"Redis CPU while it has a core of its own: {deliveries:,} deliveries",
        [
            Figure(f"a queue on streams and nothing else, {BATCH} in a pipeline", "us", floor[1:], None, 1),
            *(
                Figure(
                    f"our transitions, up to {batch} in a script", "us", costs[1:],
                    at_most(20) if batch == BATCH else None, 1,
                )
                for batch, costs in ours.items()
            ),
            Figure(
                f"ours, up to {BATCH} in a script, to the queue on streams", "x",
                ratios(ours[BATCH][1:], floor[1:]), None, 1,
            ),
        ],
        [
            "handed out, acknowledged, deleted; an outcome of 450 bytes is written, and read once",
            f"a worker takes up to {BATCH} in a script",
            f"ours: each to another of {HOSTS:,} hosts, so that a script meets as many hosts as deliveries",
        ],
    )  # fmt: skip


def _cost(client: redis.Redis, database: Database, deliveries: int) -> float:
    """Microseconds."""
    client.delete("ready", "outcomes")
    client.xgroup_create("ready", "workers", mkstream=True)
    for start in range(0, deliveries, BATCH):
        numbers = range(start, min(start + BATCH, deliveries))
        _all_of(client, [("XADD", "ready", "*", "d", 1_764_000_000_000_000 + number) for number in numbers])
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


def _all_of(client: redis.Redis, commands: Sequence[tuple[Any, ...]]) -> None:
    with client.pipeline(transaction=False) as pipeline:
        for command in commands:
            pipeline.execute_command(*command)  # type: ignore[no-untyped-call]
        pipeline.execute()
