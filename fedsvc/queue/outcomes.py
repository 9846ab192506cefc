"""The log of outcomes, as archive and watchers read it: in order, from a position that they keep."""

from __future__ import annotations

from typing import Final

from fedsvc.config import Settings
from fedsvc.domain.delivery import Delivery, DeliveryId, DeliveryState
from fedsvc.errors import QueueCorrupt
from fedsvc.queue import outcome
from fedsvc.queue.keys import Keys
from fedsvc.queue.link import Link
from fedsvc.queue.script import Script

#: runs although Redis is full: archiving is what makes room
_LEAD: Final = """#!lua flags=allow-oom
local leader = redis.call('GET', KEYS[1])
if leader and leader ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""


class OutcomeLog:
    def __init__(self, link: Link, keys: Keys, settings: Settings) -> None:
        self._link = link
        self._keys = keys
        self._lease_ms = int(settings.lease * 1000)
        self._retention_ms = settings.outcome_retention * 1000
        self._archived = Script("archived")
        self._trim = Script("trim")
        self._bury = Script("bury")
        self._dead_ms = settings.dead_letter_retention * 1000

    async def lead(self, partition: int, name: str) -> bool:
        """Whether `name` is the one that archives this partition, for one lease from now. Two at once would
        do no harm: archiving is idempotent."""
        key = self._keys.partition(partition).archiver
        return bool(await self._link.call("EVAL", _LEAD, 1, key, name, self._lease_ms))

    async def position(self, partition: int) -> int:
        """Number of the last outcome that is archived; 0 for none."""
        return int(await self._link.call("GET", self._keys.partition(partition).archived) or 0)

    async def read(self, partition: int, after: int, limit: int) -> tuple[list[Delivery], int, int]:
        """Outcomes past number `after`, oldest first: those that can be read, the number of the last entry
        looked at, and how many entries that were."""
        entries = await self._link.call(
            "XRANGE", self._keys.partition(partition).outcomes, f"{after + 1}-0", "+", "COUNT", limit
        )
        outcomes: list[Delivery] = []
        for name, fields in entries:
            number = int(name.split(b"-")[0])
            try:
                _, sequence, _, state, _, payload = fields
                id = DeliveryId(partition, int(sequence))
                outcomes.append(outcome.unpack(payload, id, DeliveryState(int(state)), number))
            except (QueueCorrupt, ValueError):
                continue  # not written by us; it must not block those behind it
        last = int(entries[-1][0].split(b"-")[0]) if entries else after
        return outcomes, last, len(entries)

    async def commit(self, partition: int, after: int, number: int, count: int) -> None:
        """The archive has committed what `read` gave: `count` entries past `after`, up to `number`."""
        await self._link.run(self._archived, self._keys.partition(partition).prefix, [number, after, count])

    async def trim(self, partition: int, limit: int, *, early: bool = False) -> int:
        """Forget outcomes that are archived and older than FEDSVC_OUTCOME_RETENTION; if `early`, all that are
        archived. Returns how many."""
        prefix = self._keys.partition(partition).prefix
        return int(await self._link.run(self._trim, prefix, [0 if early else self._retention_ms, limit]))

    async def bury(self, partition: int, limit: int) -> int:
        """End dead letters that are older than FEDSVC_DEAD_LETTER_RETENTION. Returns how many."""
        prefix = self._keys.partition(partition).prefix
        return int(await self._link.run(self._bury, prefix, [self._dead_ms, limit]))
