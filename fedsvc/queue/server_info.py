"""What Redis says of itself, and whether the queue in it is ours."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from fedsvc.config import Settings
from fedsvc.errors import ConfigurationError
from fedsvc.queue.keys import Keys
from fedsvc.queue.link import Link


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What Redis says of itself. Memory in bytes; `max_memory` 0 stands for no limit."""

    server: str
    version: str
    used_memory: int
    peak_memory: int
    rss_memory: int
    fragmentation: float
    max_memory: int
    policy: str
    aof_enabled: bool
    master: bool


async def server_info(link: Link) -> ServerInfo:
    """Raises QueueUnavailable."""
    memory, server, persistence, replication = await asyncio.gather(
        *(link.call("INFO", section) for section in ("memory", "server", "persistence", "replication"))
    )
    info = {**_info(memory), **_info(server), **_info(persistence), **_info(replication)}
    return ServerInfo(
        server=str(info.get("server_name") or "redis"),
        version=str(info.get("valkey_version") or info.get("redis_version", "")),
        used_memory=int(info.get("used_memory", 0)),
        peak_memory=int(info.get("used_memory_peak", 0)),
        rss_memory=int(info.get("used_memory_rss", 0)),
        fragmentation=float(info.get("mem_fragmentation_ratio", 0.0)),
        max_memory=int(info.get("maxmemory", 0)),
        policy=str(info.get("maxmemory_policy", "")),
        aof_enabled=str(info.get("aof_enabled", "0")) == "1",
        master=info.get("role", "master") == "master",
    )


def _info(answer: Any) -> dict[str, Any]:
    lines = bytes(answer).decode(errors="replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


async def record_partitions(link: Link, keys: Keys, settings: Settings) -> None:
    """Write down the number of partitions at first start. Raises ConfigurationError if this queue was made
    with another, QueueUnavailable if Redis does not answer."""
    answer = await link.call("GET", keys.partitions)  # a full Redis would refuse to set what is set
    if answer is None:
        answer = await link.call("SET", keys.partitions, settings.partitions, "NX", "GET")
    if answer is not None and int(answer) != settings.partitions:
        raise ConfigurationError(
            "FEDSVC_PARTITIONS",
            f"this queue was made with {int(answer)} partitions, not {settings.partitions}",
        )
