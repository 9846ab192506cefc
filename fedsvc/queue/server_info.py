"""What Redis says of itself, and whether the queue in it is ours."""

from __future__ import annotations

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
    #: whether the last write to it went well, where there is one
    aof_written: bool
    master: bool
    #: that are connected, to the master that has fewest
    replicas: int = 0

    @property
    def memory_share(self) -> float:
        """Of what it may use; 0 without a limit."""
        return self.used_memory / self.max_memory if self.max_memory else 0.0


async def server_info(link: Link) -> ServerInfo:
    """Of one server; of a cluster, memory is that of all masters together, and the limit is such that it is
    as full as the fullest of them. Raises QueueUnavailable."""
    masters = [_info(answer) for answer in await link.everywhere("INFO")]
    first = masters[0]
    used = sum(int(m.get("used_memory", 0)) for m in masters)
    limits = [(int(m.get("used_memory", 0)), int(m.get("maxmemory", 0))) for m in masters]
    # The queue is full once one of them is.
    fullest = max((u / limit for u, limit in limits if limit), default=0.0)
    return ServerInfo(
        server=str(first.get("server_name") or "redis"),
        version=str(first.get("valkey_version") or first.get("redis_version", "")),
        used_memory=used,
        peak_memory=sum(int(m.get("used_memory_peak", 0)) for m in masters),
        rss_memory=sum(int(m.get("used_memory_rss", 0)) for m in masters),
        fragmentation=float(first.get("mem_fragmentation_ratio", 0.0)),
        max_memory=round(used / fullest) if fullest else 0,
        policy=str(first.get("maxmemory_policy", "")),
        aof_enabled=all(str(m.get("aof_enabled", "0")) == "1" for m in masters),
        aof_written=all(str(m.get("aof_last_write_status", "ok")) == "ok" for m in masters),
        master=all(m.get("role", "master") == "master" for m in masters),
        replicas=min(int(m.get("connected_slaves", 0)) for m in masters),
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
