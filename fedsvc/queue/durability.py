"""When a write counts as safe, before a caller is told that its work was accepted.

memory        Redis has it
fsync         it is on the disk of the master (WAITAOF, Redis 7.2 or newer, or appendfsync always)
replicated    so many replicas have it (WAIT)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from fedsvc.config import Settings
from fedsvc.errors import ConfigurationError, FedsvcError

if TYPE_CHECKING:
    from fedsvc.queue.link import Link

#: share of the time in which Redis must answer that it may wait for disks and replicas
_SHARE: Final = 0.8


class Durability:
    """What is asked after writes that must be safe: nothing, unless `check` found that something is."""

    def __init__(self, command: tuple[str | int, ...] | None = None, wanted: int = 0) -> None:
        self.command = command
        self._wanted = wanted

    def holds(self, answers: Sequence[Any]) -> bool:
        """Whether all servers that were asked have confirmed."""
        for answer in answers:
            reached = answer[0] if isinstance(answer, list) and answer else answer
            if not isinstance(reached, int) or reached < self._wanted:
                return False
        return True


async def check_durability(link: Link, settings: Settings) -> None:
    """Make `link` ask for what FEDSVC_DURABILITY says. Raises ConfigurationError if the servers cannot give
    it, QueueUnavailable if they do not answer."""
    wait_ms = int(settings.redis_timeout * _SHARE * 1000)
    match settings.durability:
        case "memory":
            link.durability = Durability()
        case "replicated":
            replicas = settings.durability_replicas
            link.durability = Durability(("WAIT", replicas, wait_ms), replicas)
        case "fsync":
            for told in await link.everywhere("INFO", "persistence"):
                if b"aof_enabled:1" not in told:
                    raise ConfigurationError(
                        "FEDSVC_DURABILITY", "is fsync, but Redis keeps no append-only file (appendonly no)"
                    )
            if await _has_waitaof(link):
                link.durability = Durability(("WAITAOF", 1, 0, wait_ms), 1)
                return
            for answer in await link.everywhere("CONFIG", "GET", "appendfsync"):
                if b"always" not in answer:
                    raise ConfigurationError(
                        "FEDSVC_DURABILITY",
                        "is fsync: this Redis has no WAITAOF, so it must run with appendfsync always",
                    )
            link.durability = Durability()


async def _has_waitaof(link: Link) -> bool:
    try:
        await link.everywhere("WAITAOF", 0, 0, 1)
    except FedsvcError as error:
        if "unknown command" in str(error):
            return False
        raise
    return True
