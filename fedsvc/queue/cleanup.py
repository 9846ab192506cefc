"""Makes room in Redis at an operator's word, and says what it freed. Pending work is never touched."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

from fedsvc.config import Settings
from fedsvc.errors import FedsvcError
from fedsvc.queue.hosts import Hosts
from fedsvc.queue.link import Link
from fedsvc.queue.outcomes import OutcomeLog
from fedsvc.queue.server_info import server_info


class Cleanup:
    #: entries forgotten in one script, and scripts for one partition and kind, at most
    BATCH: Final = 1000
    ROUNDS: Final = 1000

    def __init__(self, link: Link, outcomes: OutcomeLog, hosts: Hosts, settings: Settings) -> None:
        self._link = link
        self._outcomes = outcomes
        self._hosts = hosts
        self._partitions = range(settings.partitions)

    async def run(self, *, aggressive: bool = False) -> tuple[dict[str, int], int]:
        """Forget what has had its time; if `aggressive`, also archived outcomes that would stay for a while.
        How many entries of each kind, and how many bytes less Redis uses, with whatever came and went
        meanwhile; 0 if nothing was forgotten. Raises QueueUnavailable."""
        before = (await server_info(self._link)).used_memory
        freed = {"outcomes": 0, "dead_letters": 0, "hosts": 0}
        for partition in self._partitions:
            for _ in range(self.ROUNDS):
                trimmed = await self._outcomes.trim(partition, self.BATCH, early=aggressive)
                freed["outcomes"] += trimmed
                if trimmed < self.BATCH:
                    break
            for _ in range(self.ROUNDS):
                buried = await self._outcomes.bury(partition, self.BATCH)
                freed["dead_letters"] += buried
                if buried < self.BATCH:
                    break
            freed["hosts"] += (await self._hosts.audit(partition)).forgotten
        with suppress(FedsvcError):  # a server without jemalloc, or a user without the right: a favour only
            await self._link.everywhere("MEMORY", "PURGE")
        if not any(freed.values()):
            return freed, 0  # buffers of connections grow and shrink all the time
        after = (await server_info(self._link)).used_memory
        return freed, max(0, before - after)
