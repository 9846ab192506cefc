"""How much of one caller and one origin is taken in, on a clock of the test's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsvc.config import Settings
from fedsvc.errors import ConfigurationError, InvalidInput, RateLimited
from fedsvc.server.caller import Caller
from fedsvc.server.errors import _retry_info
from fedsvc.server.limits import Limits

ADA, BOB = Caller("ada"), Caller("bob")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def limits(clock: Clock, **settings: str) -> Limits:
    named = {f"FEDSVC_{name.upper()}": value for name, value in settings.items()}
    return Limits(Settings.from_environment(named), clock)


def refused_for(call: object, *arguments: object) -> int:
    """Seconds that the caller is told to wait."""
    with pytest.raises(RateLimited) as error:
        call(*arguments)  # type: ignore[operator]
    return error.value.retry_after_s


def test_calls_of_one_caller_are_limited_and_those_of_another_are_not(clock: Clock) -> None:
    found = limits(clock, caller_calls="2")
    for _ in range(10):  # five seconds' worth at once
        found.call(ADA)
    assert refused_for(found.call, ADA) == 1
    found.call(BOB)
    clock.now += 0.5
    found.call(ADA)
    assert refused_for(found.call, ADA) == 1


def test_a_fan_out_larger_than_the_bucket_is_taken_and_paid_for_afterwards(clock: Clock) -> None:
    found = limits(clock, caller_rate="100")
    found.deliveries(ADA, "a.example", 10_000)
    assert refused_for(found.deliveries, ADA, "a.example", 1) == 96
    clock.now += 95
    assert refused_for(found.deliveries, ADA, "a.example", 1) == 1
    clock.now += 0.1
    found.deliveries(ADA, "a.example", 1)


def test_an_origin_is_limited_whoever_speaks_for_it(clock: Clock) -> None:
    found = limits(clock, origin_rate="10")
    found.deliveries(ADA, "a.example", 60)
    assert refused_for(found.deliveries, BOB, "a.example", 1) == 2
    found.deliveries(BOB, "b.example", 1)


def test_single_limits_go_before_the_general_ones(clock: Clock) -> None:
    found = limits(
        clock,
        caller_calls="1",
        caller_rate="1",
        origin_rate="1",
        limits="ada:calls=0:rate=0:bytes=100:fan_out=7, @A.Example.:rate=0:bytes=50 @0::1:rate=3",
    )
    for _ in range(100):
        found.call(ADA)
        found.deliveries(ADA, "a.example", 10)
    assert (found.max_bytes(ADA), found.max_fan_out(ADA)) == (100, 7)
    plain = Settings.from_environment({})
    assert (found.max_bytes(BOB), found.max_fan_out(BOB)) == (plain.max_activity_bytes, plain.max_fan_out)
    found.check_size("a.example", 50)
    with pytest.raises(InvalidInput, match="activity"):
        found.check_size("a.example", 51)
    found.check_size("b.example", 51)
    found.deliveries(ADA, "::1", 15)
    assert refused_for(found.deliveries, ADA, "::1", 1) == 1


def test_a_single_limit_of_something_else_leaves_the_general_backlog(clock: Clock) -> None:
    found = limits(
        clock,
        caller_backlog="10",
        origin_backlog="20",
        limits="ada:calls=1, bob:backlog=0, @a.example:rate=1, @b.example:backlog=7",
    )
    assert [found.caller_backlog(caller) for caller in (ADA, BOB, Caller("cy"))] == [10, 0, 10]
    assert [found.origin_backlog(f"{name}.example") for name in "abc"] == [20, 7, 20]


@pytest.mark.parametrize(
    "text",
    [
        "ada", "ada:", "ada:calls", "ada:calls=x", "ada:calls=-1", "ada:calls=nan", "ada:calls=inf",
        "ada:bytes=0", "ada:bytes=1.5", "ada:size=1", "@a.example:calls=1", "@a.example:fan_out=1",
        ":rate=1", "@:rate=1", "ada:rate=1 ada:rate=2", "@https://a.example:rate=1", "@a.example/:rate=1",
        "@a.example:rate=1 @A.example.:rate=2", "ada:rate=1e-300", "ada:calls=5e-324",
        "@a.example:rate=9e-7",
    ],
)  # fmt: skip
def test_bad_limits_are_refused_by_their_place(clock: Clock, text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"FEDSVC_LIMITS.*entry \d"):
        limits(clock, limits=text)


@pytest.mark.parametrize("setting", ["caller_calls", "caller_rate", "origin_rate"])
def test_a_rate_so_low_that_no_wait_is_long_enough_is_refused_by_its_setting(
    clock: Clock, setting: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"FEDSVC_{setting.upper()}: 1e-300 a second is less than"):
        limits(clock, **{setting: "1e-300"})


def test_at_the_lowest_rate_the_answer_says_how_long_to_wait(clock: Clock) -> None:
    found = limits(clock, limits="ada:rate=1e-6")
    found.deliveries(ADA, "a.example", 1_000_000)
    wait = refused_for(found.deliveries, ADA, "a.example", 1)
    assert _retry_info(wait).retry_delay.seconds == wait == 10**12


def test_the_place_of_a_bad_limit_is_counted_from_one(clock: Clock) -> None:
    with pytest.raises(ConfigurationError, match="entry 2"):
        limits(clock, limits="ada:rate=1 bob:rate=x cy:rate=1")


@given(st.lists(st.tuples(st.floats(0, 10), st.integers(1, 500)), max_size=60), st.integers(1, 50))
def test_over_any_time_no_more_is_taken_than_the_rate_and_one_burst_and_one_call(
    steps: list[tuple[float, int]], rate: int
) -> None:
    clock = Clock()
    found = limits(clock, caller_rate=str(rate))
    start, taken, largest = clock.now, 0, 0
    waits = []
    for wait, n in steps:
        clock.now += wait
        try:
            found.deliveries(ADA, "a.example", n)
        except RateLimited as error:
            waits.append(error.retry_after_s)
        else:
            taken += n
            largest = max(largest, n)
    assert all(wait >= 1 for wait in waits)
    assert taken <= (clock.now - start) * rate + rate * 5 + largest + 1e-6


def test_callers_that_are_many_are_forgotten_from_the_longest_unused(clock: Clock) -> None:
    found = limits(clock, caller_calls="0.1")
    found.call(ADA)
    assert refused_for(found.call, ADA)
    for number in range(10_000):
        found.call(Caller(f"c{number}"))
    found.call(ADA)


def test_less_than_a_whole_call_is_none(clock: Clock) -> None:
    found = limits(clock, caller_calls="1")
    for _ in range(5):
        found.call(ADA)
    clock.now += 0.9
    assert refused_for(found.call, ADA) == 1
    clock.now += 0.1
    found.call(ADA)
