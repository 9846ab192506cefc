"""How workers divide partitions, and when one takes from another's. Time is virtual."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsvc.worker.affinity import Affinity, divided

NAMES = st.sets(st.text("abcdef0123456789", min_size=1, max_size=8), min_size=1, max_size=24)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def two(partitions: int = 16) -> tuple[Affinity, Clock, int, int]:
    """Ours, beside one other; its clock; a partition of ours and one of the other's."""
    clock = Clock()
    affinity = Affinity("a", partitions, clock)
    affinity.see({"a", "b"})
    ours = min(affinity.own)
    theirs = min(set(range(partitions)) - affinity.own)
    return affinity, clock, ours, theirs


@given(NAMES, st.integers(1, 64))
def test_every_partition_has_a_worker_every_worker_a_partition_and_none_much_more(
    names: set[str], partitions: int
) -> None:
    shares = divided(names, partitions)
    assert set(shares) == names
    assert set().union(*shares.values()) == set(range(partitions))
    sizes = [len(owned) for owned in shares.values()]
    if len(names) <= partitions:
        assert sum(sizes) == partitions, "none has two"
        assert max(sizes) - min(sizes) <= 1
    else:
        assert set(sizes) == {1}
        load = [sum(p in owned for owned in shares.values()) for p in range(partitions)]
        assert max(load) - min(load) <= 1


@given(NAMES, st.integers(1, 64))
def test_all_come_to_the_same_division(names: set[str], partitions: int) -> None:
    affinities = [Affinity(name, partitions) for name in sorted(names)]
    for affinity in affinities:
        affinity.see(names)
    assert {a.name: a.own for a in affinities} == divided(sorted(names, reverse=True), partitions)


def test_little_moves_when_a_worker_comes_or_goes() -> None:
    partitions, moved, least = 256, 0, 0
    for run in range(20):
        names = {f"w{run}-{n}" for n in range(8)}
        before, after = divided(names, partitions), divided(names | {"new"}, partitions)
        moved += sum(len(before[name] - after[name]) for name in names)
        least += partitions // 9
    assert moved <= 1.5 * least, f"{moved} moved where {least} had to"


def test_a_worker_that_knows_nobody_serves_everything() -> None:
    affinity = Affinity("a", 4, Clock())
    assert affinity.alone
    assert all(affinity.serves(p) for p in range(4))


def test_two_share_and_one_that_says_it_stops_is_left_out_at_once_whatever_its_lease_says() -> None:
    affinity, _, _, theirs = two()
    assert len(affinity.own) == 8
    assert not affinity.serves(theirs)
    affinity.left("b")
    assert affinity.alone
    affinity.see({"a", "b"})  # its lease runs on while it finishes
    assert affinity.alone
    affinity.see({"a"})
    affinity.joined("b")
    assert not affinity.alone


def test_a_worker_whose_lease_was_lost_still_counts_itself() -> None:
    affinity, *_ = two()
    affinity.see({"b"})
    assert affinity.workers == {"a", "b"}
    assert len(affinity.own) == 8


def test_what_waits_a_little_in_anothers_partition_is_left_to_it() -> None:
    affinity, _, ours, theirs = two()
    assert affinity.looked({ours: 0, theirs: 249}) == []
    assert not affinity.serves(theirs)


def test_another_that_is_behind_is_helped_for_a_while_and_only_when_nothing_of_ours_waits() -> None:
    affinity, clock, ours, theirs = two()
    assert affinity.looked({ours: 0, theirs: 250}) == [theirs]
    assert affinity.serves(theirs)
    hot = {theirs: None, ours: None}
    assert affinity.choose(hot, (), 8) == [ours]
    assert affinity.choose({theirs: None}, (), 8) == [theirs]
    clock.now += affinity.WINDOW
    assert not affinity.serves(theirs)


def test_what_is_with_us_already_is_found_again_whoever_the_partition_belongs_to() -> None:
    affinity, _, ours, theirs = two()
    assert affinity.choose({theirs: None, ours: None}, {theirs}, 8) == [theirs, ours]


def test_two_that_are_both_behind_keep_to_their_own() -> None:
    affinity, _, ours, theirs = two()
    affinity.looked({ours: 60_000, theirs: 62_000})
    assert affinity.choose({theirs: None, ours: None}, (), 8) == [ours]
    # a look at theirs alone, upon its bell, knows of ours
    affinity.looked({theirs: 62_500})
    assert affinity.choose({theirs: None, ours: None}, (), 8) == [ours]


def test_a_partition_that_waits_much_longer_than_ours_is_served_beside_them() -> None:
    affinity, clock, ours, theirs = two()
    affinity.looked({ours: 1000, theirs: 4000})
    assert affinity.choose({theirs: None, ours: None}, (), 8) == [theirs, ours]
    clock.now += affinity.WINDOW
    assert affinity.choose({theirs: None, ours: None}, (), 8) == [ours]


def test_a_bell_of_anothers_partition_is_looked_after_once_in_a_while() -> None:
    affinity, clock, _, theirs = two()
    assert affinity.seconds_to_look() is None
    assert affinity.heard(theirs)
    assert not affinity.heard(theirs), "that is looked after already"
    assert affinity.seconds_to_look() == affinity.PATIENCE
    assert affinity.looks_due() == ([], [])
    clock.now += affinity.PATIENCE
    assert affinity.looks_due() == ([theirs], [])
    assert affinity.looks_due() == ([], [])


def test_what_is_urgent_is_looked_after_sooner_by_exactly_one_other() -> None:
    clock = Clock()
    affinities = [Affinity(name, 8, clock) for name in "abcd"]
    for affinity in affinities:
        affinity.see("abcd")
    for partition in range(8):
        owner = [a for a in affinities if a.serves(partition)]
        assert len(owner) == 1
        for affinity in affinities:
            if affinity is not owner[0]:
                affinity.heard(partition, urgent=True)
    clock.now += Affinity.URGENT_PATIENCE
    found = [partition for affinity in affinities for partition in affinity.looks_due()[1]]
    assert sorted(found) == list(range(8))
    clock.now += Affinity.PATIENCE
    assert not any(affinity.looks_due()[0] for affinity in affinities), "nobody looks at the same once more"


def team(workers: int, partitions: int) -> tuple[list[Affinity], Clock]:
    clock = Clock()
    affinities = [Affinity(f"w{number}", partitions, clock) for number in range(workers)]
    for affinity in affinities:
        affinity.see(a.name for a in affinities)
    return affinities, clock


@given(st.integers(2, 9), st.integers(1, 64))
def test_one_other_looks_at_each_partition_in_every_round(workers: int, partitions: int) -> None:
    affinities, _ = team(workers, partitions)
    for _ in range(3):
        looks = [affinity.to_look_at() for affinity in affinities]
        assert set().union(*looks) == set().union(*(a.all - a.own for a in affinities))
        for affinity, look in zip(affinities, looks, strict=True):
            assert not look & affinity.own


def test_looks_grow_with_partitions_not_with_workers_and_each_worker_comes_by_everywhere() -> None:
    affinities, _ = team(26, 128)
    rounds = 2 * 24
    looks = [[affinity.to_look_at() for _ in range(rounds)] for affinity in affinities]
    assert sum(len(look) for of_one in looks for look in of_one) <= 2 * 128 * rounds
    for affinity, of_one in zip(affinities, looks, strict=True):
        assert frozenset().union(*of_one) == affinity.all - affinity.own


def test_one_that_is_behind_is_looked_at_in_every_round_until_it_is_not() -> None:
    affinities, clock = team(9, 64)
    affinity = affinities[0]
    others = affinity.all - affinity.own - affinity.to_look_at()
    theirs = min(others)
    affinity.looked({theirs: 250})
    for _ in range(4):
        clock.now += affinity.ROUND
        assert theirs in affinity.to_look_at()
        affinity.looked({theirs: 250})
    affinity.looked({theirs: 0})
    assert sum(theirs in affinity.to_look_at() for _ in range(10)) <= 1


@given(st.integers(2, 9))
def test_a_bell_is_looked_after_by_one_other(workers: int) -> None:
    affinities, clock = team(workers, 16)
    for partition in range(16):
        heard = [a for a in affinities if not a.serves(partition) and a.heard(partition)]
        assert len(heard) == (1 if any(not a.serves(partition) for a in affinities) else 0)
    clock.now += Affinity.PATIENCE
    looked_at = sorted(partition for a in affinities for partition in a.looks_due()[0])
    assert looked_at == list(range(16))


def test_what_becomes_ours_is_not_looked_after_any_more() -> None:
    affinity, clock, _, theirs = two()
    affinity.heard(theirs)
    affinity.left("b")
    clock.now += 1
    assert affinity.looks_due() == ([], [])


def test_a_worker_that_hears_of_its_own_end_keeps_its_share() -> None:
    affinity, _, ours, _ = two()
    before = affinity.own
    affinity.left("a")
    assert (affinity.own, affinity.workers) == (before, frozenset("ab"))
    assert affinity.serves(ours)


def test_the_next_look_is_the_one_that_is_due_first_and_each_is_made_when_it_is_due() -> None:
    affinity, clock, _, theirs = two()
    affinity.heard(theirs)
    affinity.heard(theirs, urgent=True)
    assert affinity.seconds_to_look() == pytest.approx(affinity.URGENT_PATIENCE)
    assert affinity.looks_due() == ([], [])
    clock.now += affinity.URGENT_PATIENCE
    assert affinity.looks_due() == ([], [theirs])
    assert affinity.looks_due() == ([], [])
    clock.now += affinity.PATIENCE
    assert affinity.looks_due() == ([theirs], [])
    assert affinity.seconds_to_look() is None


def test_what_waits_in_ours_is_never_told_as_anothers_that_is_behind() -> None:
    affinity, _, ours, _ = two()
    assert affinity.looked({ours: 60_000}) == []


def test_it_is_the_oldest_of_ours_that_a_laggard_is_held_against() -> None:
    affinity, _, ours, theirs = two()
    also_ours = max(affinity.own)
    affinity.looked({ours: 0, also_ours: 1001, theirs: 4000})
    assert affinity.choose({theirs: None, ours: None}, (), 8) == [ours]


def test_one_that_was_behind_is_looked_at_as_any_other_when_nothing_more_was_heard_of_it() -> None:
    affinities, clock = team(9, 64)
    affinity = affinities[0]
    theirs = min(affinity.all - affinity.own - affinity.to_look_at())
    affinity.looked({theirs: 250})
    clock.now += affinity.WINDOW
    assert sum(theirs in affinity.to_look_at() for _ in range(10)) <= 1


def test_the_others_together_look_at_each_partition_once_in_a_second_whatever_rolls_are_called() -> None:
    for workers in (3, 4, 9):
        affinities, _ = team(workers, 60)
        looked: list[int] = []
        for _ in range(round(Affinity.OTHERS / Affinity.ROUND)):
            for affinity in affinities:
                looked += affinity.to_look_at() - affinity._deputy_for
                affinity.see(a.name for a in affinities)
        assert 60 <= len(looked) <= 60 + 2 * workers
        assert len(set(looked)) > 30, "each begins somewhere else"


def test_the_deputy_of_a_partition_is_mostly_who_gets_it_when_its_worker_goes() -> None:
    affinities, _ = team(5, 64)
    gone, *rest = affinities
    deputies = {p: a for a in rest for p in gone.own if p in a._deputy_for}
    assert deputies.keys() == gone.own
    for affinity in rest:
        affinity.left(gone.name)
    assert sum(p in deputy.own for p, deputy in deputies.items()) > len(deputies) / 2
