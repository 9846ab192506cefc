"""Rates from buckets, of which only the new ones are read again."""

from __future__ import annotations

from fedsvc.queue.rates import BUCKETS, RecentCounts

NOW = 1_000_000  # a bucket's number


def buckets(**counted: dict[int, int]) -> list[bytes | None]:
    """As Redis tells them, from NOW back: by metric the counts, by how many buckets ago."""
    many = 1 + max((back for counts in counted.values() for back in counts), default=0)
    return [
        b"%d:%d" % (NOW - back, counted[m][back]) if m in counted and back in counted[m] else None
        for m in "atdf"
        for back in range(many)
    ]


def at(bucket: float) -> int:
    return int(bucket * 5000)


def test_a_window_ends_now_and_lacks_nothing() -> None:
    recent = RecentCounts(1)
    recent.note(0, 9, NOW, buckets(a={0: 30, 1: 60, 11: 8, 12: 100}, d={2: 12}))
    rates = recent.per_second(at(NOW + 0.5), 60)
    assert rates.accepted == (30 + 60 + 8 + 100 / 2) / 60
    assert (rates.attempted, rates.delivered, rates.failed) == (0, 12 / 60, 0)
    assert recent.per_second(at(NOW + 0.5), 300).accepted == 198 / 300


def test_only_what_may_have_changed_is_read_again() -> None:
    recent = RecentCounts(2)
    recent.note(0, 5, NOW - 1, [b"%d:7" % (NOW - 1), None, None, None])
    recent.note(1, 5, NOW, [b"%d:1" % NOW, None, None, None])
    assert (recent.since(0), recent.since(1)) == (NOW - 1, NOW)
    recent.note(0, 9, NOW, buckets(a={0: 2, 1: 8}))  # the one before had gone on
    assert recent.per_second(at(NOW + 1) - 1, 60).accepted == (1 + 2 + 8) / 60
    recent.note(0, 9, NOW, [b"%d:2" % NOW, None, None, None])
    assert recent.per_second(at(NOW + 1) - 1, 60).accepted == (1 + 2 + 8) / 60


def test_a_bucket_of_a_round_before_does_not_count() -> None:
    recent = RecentCounts(1)
    recent.note(0, 5, NOW, [b"%d:7" % (NOW - BUCKETS), None, None, None])
    assert recent.per_second(at(NOW), 60).accepted == 0


def test_what_is_old_is_forgotten() -> None:
    recent = RecentCounts(1)
    recent.note(0, 5, NOW, buckets(a={0: 7}))
    recent.note(0, 5, NOW + BUCKETS, [None] * 4)
    assert recent.per_second(at(NOW), 60).accepted == 0
    assert not recent._sum


def test_what_redis_has_lost_and_a_clock_that_was_set_back_count_no_more() -> None:
    recent = RecentCounts(1)
    recent.note(0, 500, NOW, buckets(a={0: 70, 1: 50}))
    recent.note(0, 3, NOW, buckets(a={0: 3}))
    assert recent.per_second(at(NOW + 1) - 1, 60).accepted == 3 / 60
    recent.note(0, 4, NOW - 10, [b"%d:1" % (NOW - 10), None, None, None])
    assert recent.since(0) == NOW - 10
    assert recent.per_second(at(NOW - 9) - 1, 60).accepted == 1 / 60
