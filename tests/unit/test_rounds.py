"""Which partitions periodic work goes through. Time is virtual."""

from __future__ import annotations

from fedsvc.worker.affinity import Affinity
from fedsvc.worker.rounds import Rounds


def test_ours_each_time_and_all_now_and_then() -> None:
    now = 1000.0
    affinity = Affinity("a", 8)
    rounds = Rounds(affinity, 30.0, lambda: now)
    assert rounds.next() == frozenset(range(8)), "nobody else is known"
    affinity.see({"a", "b"})
    assert rounds.next() == affinity.own
    now += 29.9
    assert rounds.next() == affinity.own
    now += 0.1
    assert rounds.next() == frozenset(range(8))
    assert rounds.next() == affinity.own
    affinity.left("b")
    assert rounds.next() == frozenset(range(8))
