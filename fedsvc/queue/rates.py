"""How many deliveries were accepted, tried, delivered and given up lately, in buckets of seconds.

Redis counts them in buckets of each partition. One that is over does not change any more, so that after a
first look only those are asked for that are new: to read all of them each time would cost more than all other
figures together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

#: as in lua/prelude.lua: seconds of a bucket, and how many there are
BUCKET_S: Final = 5
BUCKETS: Final = 64
#: accepted, tried, delivered, given up; as lua/stats.lua has them
_METRICS: Final = range(4)


@dataclass(frozen=True, slots=True)
class Rates:
    """Per second, over the last `window_s` seconds."""

    window_s: int
    accepted: float
    attempted: float
    delivered: float
    failed: float


class RecentCounts:
    def __init__(self, partitions: int) -> None:
        self._newest = [0] * partitions
        self._accepted = [0] * partitions
        self._known: list[dict[tuple[int, int], int]] = [{} for _ in range(partitions)]
        #: of all partitions together
        self._sum: Counter[tuple[int, int]] = Counter()

    def since(self, partition: int) -> int:
        """Number of the first bucket that may have changed."""
        return self._newest[partition]

    def note(self, partition: int, accepted: int, newest: int, counts: Sequence[bytes | None]) -> None:
        """What a partition counted in the buckets up to `newest`, the newest first, metric by metric.
        `accepted`: how many it ever did."""
        if newest < self._newest[partition] or accepted < self._accepted[partition]:
            self._forget(partition)  # its clock was set back, or Redis lost what it had
        self._newest[partition], self._accepted[partition] = newest, accepted
        known, many = self._known[partition], len(counts) // len(_METRICS)
        for metric in _METRICS:
            for back in range(many):
                packed = counts[metric * many + back]
                if packed is None:
                    continue
                bucket, _, count = packed.partition(b":")
                if int(bucket) == newest - back:  # otherwise it is what was there a round before
                    place = (metric, newest - back)
                    self._sum[place] += int(count) - known.get(place, 0)
                    known[place] = int(count)
        for place in [place for place in known if place[1] <= newest - BUCKETS]:
            self._drop(known, place)

    def per_second(self, now_ms: int, window_s: int) -> Rates:
        """Over the last seconds, a multiple of BUCKET_S below BUCKETS of it."""
        newest, into_ms = divmod(now_ms, 1000 * BUCKET_S)
        oldest = newest - window_s // BUCKET_S
        # The bucket of this very moment is not over yet: what it lacks is taken from the one before all.
        missing = 1 - into_ms / (1000 * BUCKET_S)
        return Rates(
            window_s,
            *(
                (
                    sum(self._sum[metric, bucket] for bucket in range(oldest + 1, newest + 1))
                    + self._sum[metric, oldest] * missing
                )
                / window_s
                for metric in _METRICS
            ),
        )

    def _forget(self, partition: int) -> None:
        known = self._known[partition]
        for place in list(known):
            self._drop(known, place)

    def _drop(self, known: dict[tuple[int, int], int], place: tuple[int, int]) -> None:
        self._sum[place] -= known.pop(place)
        if not self._sum[place]:
            del self._sum[place]
