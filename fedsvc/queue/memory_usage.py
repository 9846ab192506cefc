"""What takes up Redis's memory, about: found out by samples, however much there is.

Each partition has the same few large keys, whose sizes Redis estimates itself. Of all other keys, which are
small and many, some are looked at, wherever they happen to stand.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from fedsvc.config import Settings
from fedsvc.queue.keys import Keys
from fedsvc.queue.link import Link
from fedsvc.queue.shared import Shared

#: keys of each partition, by category; the command that counts entries goes before those that have some
_LARGE: Final[dict[str, tuple[tuple[str, str], ...]]] = {
    "deliveries": (("deliveries", "HLEN"),),
    "ready": (
        ("ready:urgent", "XLEN"), ("ready:normal", "XLEN"), ("ready:bulk", "XLEN"), ("woken", "XLEN"),
    ),
    "retry": (("retry", "ZCARD"), ("expiry", "")),
    "dead": (("dead", "XLEN"),),
    "outcomes": (("outcomes", "XLEN"),),
    "hosts": (("hosts", "HLEN"), ("recent", ""), ("policies", ""), ("pauses", ""), ("wake", "")),
    "figures": (
        ("counters", ""), ("rates", ""), ("backlog", ""), ("spills", ""), ("spent", ""), ("followed", ""),
        ("key-uses", ""),
    ),
}  # fmt: skip
#: what one delivery takes up in its origin's line: 16 digits in a listpack
_IN_LINE: Final = 19
#: second part of the names of small keys, of a partition or of all
_SMALL: Final = {
    "message": "messages",
    "activity": "recipients",
    "lane": "lanes",
    "group": "order",
    "held": "order",
    "request": "requests",
    "key": "private_keys",
}


class MemoryCategory(NamedTuple):
    name: str
    #: about
    entries: int
    bytes: int


class MemoryUsage:
    #: seconds for which an answer is good
    FRESH: Final = 10.0
    #: partitions whose large keys are looked at
    PARTITIONS: Final = 32
    #: small keys that are looked at, on each master, about; and calls to find them
    KEYS: Final = 256
    CALLS: Final = 8
    #: parts of a large key that Redis looks at
    SAMPLES: Final = 10

    def __init__(
        self, link: Link, keys: Keys, settings: Settings, chance: Callable[[int], int] = random.getrandbits
    ) -> None:
        """`chance`: a random number of so many bits."""
        self._link = link
        self._keys = keys
        self._partitions = settings.partitions
        self._chance = chance
        self._shared = Shared(self._read, self.FRESH)

    async def read(self) -> list[MemoryCategory]:
        """Raises QueueUnavailable."""
        return await self._shared.get()

    async def _read(self) -> list[MemoryCategory]:
        entries: Counter[str] = Counter(dict.fromkeys(_LARGE, 0))
        sizes: Counter[str] = Counter()
        await self._large(entries, sizes)
        await self._small(entries, sizes)
        found = [MemoryCategory(name, entries[name], sizes[name]) for name in entries]
        return sorted(found, key=lambda category: (-category.bytes, category.name))

    async def _large(self, entries: Counter[str], sizes: Counter[str]) -> None:
        looked = min(self.PARTITIONS, self._partitions)
        asked: list[tuple[Counter[str], str, asyncio.Future[Any]]] = []
        lines: list[asyncio.Future[Any]] = []
        for number in range(looked):
            prefix = self._keys.partition(number * self._partitions // looked).prefix
            lines.append(self._link.call("HMGET", f"{prefix}:counters", "line:1", "line:2", "line:3"))
            for category, keys in _LARGE.items():
                for name, count in keys:
                    key = f"{prefix}:{name}"
                    size = self._link.call("MEMORY", "USAGE", key, "SAMPLES", self.SAMPLES)
                    asked.append((sizes, category, size))
                    if count:
                        asked.append((entries, category, self._link.call(count, key)))
        answers = await asyncio.gather(*(future for _, _, future in asked))
        for (counter, category, _), answer in zip(asked, answers, strict=True):
            counter[category] += int(answer or 0)
        in_lines = sum(
            max(0, int(number or 0)) for answer in await asyncio.gather(*lines) for number in answer
        )
        entries["ready"] += in_lines
        sizes["ready"] += in_lines * _IN_LINE
        for counter in (entries, sizes):
            for category in counter:
                counter[category] = counter[category] * self._partitions // looked

    async def _small(self, entries: Counter[str], sizes: Counter[str]) -> None:
        every = [int(n) for n in await self._link.everywhere("DBSIZE")]
        samples: list[list[bytes]] = [[] for _ in every]
        for _ in range(self.CALLS):
            # Where a key stands follows from its hash: whoever begins anywhere meets all kinds.
            pages = await self._link.everywhere("SCAN", self._chance(48), "COUNT", self.KEYS // 2)
            for sample, (_, found) in zip(samples, pages, strict=True):
                sample += found
            if min(map(len, samples)) >= self.KEYS:
                break
        for total, sample in zip(every, samples, strict=True):
            await self._weigh(sample[: 2 * self.KEYS], total, entries, sizes)

    async def _weigh(
        self, sample: Sequence[bytes], total: int, entries: Counter[str], sizes: Counter[str]
    ) -> None:
        """Add what `total` keys take up, of which these are some."""
        theirs = [(name, kind) for name in sample if (kind := self._kind(name.decode(errors="replace")))]
        weights = await asyncio.gather(*(self._link.call("MEMORY", "USAGE", name) for name, _ in theirs))
        many: Counter[str] = Counter()
        heavy: Counter[str] = Counter()
        for (_, kind), weight in zip(theirs, weights, strict=True):
            many[kind] += 1
            heavy[kind] += int(weight or 0)
        for kind in many:
            entries[kind] += many[kind] * total // len(sample)
            sizes[kind] += heavy[kind] * total // len(sample)

    def _kind(self, name: str) -> str | None:
        """Category of a small key of ours."""
        namespace, _, rest = name.partition(":")
        if namespace != self._keys.namespace:
            return None
        parts = rest.split(":")
        return _SMALL.get(parts[1] if parts[0].startswith("{") and len(parts) > 1 else parts[0])
