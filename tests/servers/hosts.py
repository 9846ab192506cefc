"""Hosts made straight in Redis, as many as it takes: a thousand times quicker than by delivering to them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import NamedTuple

from fedsvc.domain.inbox import partition_of
from fedsvc.queue.hosts import HostRecord
from servers.queue import Queue

PAUSED, GONE = 1, 2


class MadeHost(NamedTuple):
    name: str
    circuit: int = 0
    flags: int = 0
    failures: int = 0
    backlog: int = 0
    latency_ms: float = 0.0
    pause_ms: int = 0

    def packed(self) -> bytes:
        return HostRecord(
            circuit=self.circuit, flags=self.flags, failures=self.failures, lane3=self.backlog,
            latency=self.latency_ms, pause=self.pause_ms,
        ).pack()  # fmt: skip


def some_hosts(count: int, first: int = 0) -> list[MadeHost]:
    """In all states but paused, with figures that many share."""
    return [
        MadeHost(
            f"host-{n:05}.example",
            circuit=n % 3,
            failures=n % 7,
            backlog=n * 7919 % 1009,
            latency_ms=n * 104_729 % 997 + 0.25,
        )
        for n in range(first, first + count)
    ]


async def put(queue: Queue, hosts: Iterable[MadeHost]) -> None:
    """There they are, as they are told here."""
    by_partition: dict[int, list[str | bytes]] = {}
    for host in hosts:
        number = partition_of(host.name, queue.settings.partitions)
        by_partition.setdefault(number, []).extend((host.name, host.packed()))
    await asyncio.gather(
        *(
            queue.link.call("HSET", f"{queue.keys.partition(number).prefix}:hosts", *flat)
            for number, flat in by_partition.items()
        )
    )


async def remove(queue: Queue, names: Iterable[str]) -> None:
    for name in names:
        prefix = queue.keys.partition(partition_of(name, queue.settings.partitions)).prefix
        await queue.link.call("HDEL", f"{prefix}:hosts", name)
