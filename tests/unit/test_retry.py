from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsvc.domain.classify import Outcome, Verdict
from fedsvc.domain.delivery import Reason
from fedsvc.domain.retry import (
    DEFAULT_POLICY,
    Decision,
    GiveUp,
    RetryAt,
    RetryPolicy,
    decide,
    delay_ms,
)
from fedsvc.handlers.registry import Registry

MINUTE = 60_000
HOUR = 60 * MINUTE
DAY = 24 * HOUR
ACCEPTED = 1_800_000_000_000

FAILED = Verdict(Outcome.RETRY, Reason.SERVER_ERROR, 500)
FORBIDDEN = Verdict(Outcome.RETRY, Reason.FORBIDDEN, 403)

policies = st.builds(
    RetryPolicy,
    retries=st.integers(0, 50),
    factor=st.floats(1.0, 10.0),
    first_delay_s=st.floats(0.001, 10_000),
    longest_delay_s=st.floats(0.001, 100_000),
)
jitters = st.floats(0, 1, exclude_max=True)
scales = st.floats(0.001, 1000)


def limited(seconds: int) -> Verdict:
    return Verdict(Outcome.RETRY, Reason.RATE_LIMITED, 429, retry_after_ms=seconds * 1000)


def decided(verdict: Verdict = FAILED, attempts: int = 1, after_ms: int = 0, **changes: Any) -> Decision:
    arguments: dict[str, Any] = {
        "now_ms": ACCEPTED + after_ms,
        "accepted_ms": ACCEPTED,
        "expire_ms": 0,
        "max_retry_ms": 2 * DAY,
        "missing_ms": ACCEPTED,
    } | changes
    return decide(arguments.pop("policy", DEFAULT_POLICY), verdict, attempts, **arguments)


@pytest.mark.parametrize(
    "policy", [RetryPolicy(0, 1.0, 0.001, 0.001), RetryPolicy(100, 1, 1, 10**9), DEFAULT_POLICY]
)
def test_a_policy_may_be_at_its_bounds(policy: RetryPolicy) -> None:
    assert policy.problem() == ""


@pytest.mark.parametrize(
    "policy",
    [RetryPolicy(1, 0.999, 1, 1), RetryPolicy(1, 2.0, 0.0009, 1), RetryPolicy(1, 2.0, 1, 0.0009)],
)
def test_a_policy_may_not_be_past_them(policy: RetryPolicy) -> None:
    assert "no number of at least" in policy.problem()


@pytest.mark.parametrize(
    ("types", "retries", "delays_s", "longest_s"),
    [
        (["Create", "Update", "Flag", "Add", "Move", "Unheard"], 10, [60, 120, 240, 480], 3600),
        (["Delete"], 8, [30, 45, 67.5], 1800),
        (["Follow"], 8, [60, 120], 1800),
        (["Like", "Dislike"], 5, [30, 45], 600),
        (["Accept", "Reject"], 5, [30, 45], 900),
        (["Announce"], 6, [45, 90, 180], 1200),
        (["Undo"], 7, [45, 81, 145.8], 1800),
    ],
)
def test_each_type_follows_its_row_of_the_table(
    types: list[str], retries: int, delays_s: list[float], longest_s: float
) -> None:
    for name in types:
        policy = Registry.built_in().retry(name)
        assert policy.retries == retries
        assert [delay_ms(policy, n) for n in range(1, len(delays_s) + 1)] == [int(d * 1000) for d in delays_s]
        assert delay_ms(policy, 1000) == longest_s * 1000


def test_a_delay_grows_up_to_the_longest_however_slowly() -> None:
    slow = RetryPolicy(100, 1.1, 1, 3600)
    assert delay_ms(slow, 66) == int(1.1**65 * 1000) < delay_ms(slow, 80)
    assert delay_ms(slow, 100) == 3600 * 1000


@pytest.mark.parametrize("factor", [1e6, 10**400])
def test_a_delay_that_grows_beyond_all_numbers_is_the_longest(factor: float) -> None:
    assert delay_ms(RetryPolicy(100, factor, 1, 3600), 100) == 3600 * 1000


@given(policies, st.integers(1, 10_000), scales, jitters)
def test_a_delay_is_never_negative_and_never_over_the_longest(
    policy: RetryPolicy, attempts: int, scale: float, jitter: float
) -> None:
    delay = delay_ms(policy, attempts, scale=scale, jitter=jitter)
    assert 0 <= delay <= policy.longest_delay_s * scale * 1000


@given(policies, st.integers(1, 1000), scales, jitters)
def test_delays_do_not_shrink_from_attempt_to_attempt(
    policy: RetryPolicy, attempts: int, scale: float, jitter: float
) -> None:
    delays = [delay_ms(policy, attempts + n, scale=scale, jitter=jitter) for n in (0, 1)]
    assert delays[0] <= delays[1]


@given(policies, st.integers(1, 1000), jitters)
def test_jitter_takes_at_most_a_fifth(policy: RetryPolicy, attempts: int, jitter: float) -> None:
    whole = delay_ms(policy, attempts)
    assert whole * 0.8 - 1 <= delay_ms(policy, attempts, jitter=jitter) <= whole


def test_jitter_spreads_also_the_longest_delay() -> None:
    assert delay_ms(DEFAULT_POLICY, 10, jitter=0.5) == 3_240_000


def test_the_scale_shortens_all_delays() -> None:
    assert delay_ms(DEFAULT_POLICY, 1, scale=0.01) == 600
    assert delay_ms(DEFAULT_POLICY, 100, scale=0.01) == 36_000


def test_a_failure_is_retried_after_the_backoff() -> None:
    assert decided(attempts=3, after_ms=HOUR) == RetryAt(ACCEPTED + HOUR + 4 * MINUTE)


def test_the_last_retry_is_granted_and_none_after_it() -> None:
    assert isinstance(decided(attempts=10), RetryAt)
    assert decided(attempts=11) == GiveUp(Reason.RETRIES_EXHAUSTED)


def test_a_name_that_does_not_exist_is_not_given_up_before_a_day() -> None:
    missing = Verdict(Outcome.RETRY, Reason.DNS_NOT_FOUND)
    assert isinstance(decided(missing, attempts=11, after_ms=23 * HOUR), RetryAt)
    assert decided(missing, attempts=11, after_ms=24 * HOUR) == GiveUp(Reason.RETRIES_EXHAUSTED)
    assert decided(missing, attempts=1, after_ms=48 * HOUR) == GiveUp(Reason.MAX_AGE)
    assert isinstance(
        decided(missing, attempts=11, after_ms=25 * HOUR, missing_ms=ACCEPTED + 2 * HOUR), RetryAt
    )


def test_the_day_that_a_name_is_given_is_scaled_as_delays_are() -> None:
    missing = Verdict(Outcome.RETRY, Reason.DNS_NOT_FOUND)
    assert isinstance(decided(missing, attempts=11, after_ms=2 * HOUR, scale=0.1), RetryAt)
    given_up = decided(missing, attempts=11, after_ms=3 * HOUR, scale=0.1)
    assert given_up == GiveUp(Reason.RETRIES_EXHAUSTED)


@pytest.mark.parametrize("reason", [Reason.UNAUTHORIZED, Reason.FORBIDDEN])
def test_a_refusal_is_retried_three_times_and_keeps_its_reason(reason: Reason) -> None:
    verdict = Verdict(Outcome.RETRY, reason)
    assert isinstance(decided(verdict, attempts=3), RetryAt)
    assert decided(verdict, attempts=4) == GiveUp(reason)


def test_a_refusal_gets_no_more_retries_than_its_type_allows() -> None:
    policy = RetryPolicy(1, 2.0, 60, 3600)
    assert decided(FORBIDDEN, attempts=2, policy=policy) == GiveUp(Reason.FORBIDDEN)


def test_a_permanent_failure_is_given_up_with_its_reason() -> None:
    assert decided(Verdict(Outcome.PERMANENT, Reason.GONE, 410)) == GiveUp(Reason.GONE)


def test_retry_after_is_honoured_when_longer_than_the_backoff() -> None:
    assert decided(limited(7200)) == RetryAt(ACCEPTED + 2 * HOUR)


def test_retry_after_does_not_make_us_quicker_than_our_backoff() -> None:
    assert decided(limited(1)) == RetryAt(ACCEPTED + MINUTE)


@given(st.integers(0, 10 * 86_400), jitters)
def test_jitter_never_undercuts_retry_after(seconds: int, jitter: float) -> None:
    match decided(limited(seconds), jitter=jitter):
        case RetryAt(due_ms):
            assert due_ms >= min(ACCEPTED + seconds * 1000, ACCEPTED + 2 * DAY - MINUTE)
        case GiveUp():
            raise AssertionError("two days are left")


def test_a_retry_after_beyond_the_age_limit_is_honoured_up_to_a_last_try_before_it() -> None:
    assert decided(limited(10 * 86_400)) == RetryAt(ACCEPTED + 2 * DAY - MINUTE)


def test_what_a_host_held_back_is_spread_out_over_a_minute_at_most() -> None:
    assert decided(limited(7200), jitter=0.5) == RetryAt(ACCEPTED + 2 * HOUR + MINUTE // 2)
    assert decided(limited(100), jitter=0.5) == RetryAt(ACCEPTED + 110_000)


def test_the_last_try_of_a_short_life_is_made_a_tenth_of_it_before_its_end() -> None:
    assert decided(expire_ms=ACCEPTED + MINUTE) == RetryAt(ACCEPTED + 54_000)


def test_a_try_past_the_age_limit_is_brought_forward_once() -> None:
    almost = 2 * DAY - 40 * MINUTE
    assert decided(attempts=9, after_ms=almost) == RetryAt(ACCEPTED + 2 * DAY - MINUTE)
    assert decided(attempts=10, after_ms=2 * DAY - MINUTE + 1) == GiveUp(Reason.MAX_AGE)


def test_a_last_try_that_would_come_too_soon_is_not_made() -> None:
    assert decided(attempts=9, after_ms=2 * DAY - 10 * MINUTE) == GiveUp(Reason.MAX_AGE)


def test_nothing_is_retried_past_its_age_limit_or_expiry() -> None:
    assert decided(after_ms=2 * DAY) == GiveUp(Reason.MAX_AGE)
    assert decided(after_ms=HOUR, expire_ms=ACCEPTED + HOUR) == GiveUp(Reason.EXPIRED)


def test_an_expiry_beyond_the_age_limit_does_not_prolong_it() -> None:
    assert decided(after_ms=2 * DAY, expire_ms=ACCEPTED + 3 * DAY) == GiveUp(Reason.MAX_AGE)


def test_a_try_past_the_expiry_is_brought_forward() -> None:
    assert decided(limited(3600), expire_ms=ACCEPTED + 30 * MINUTE) == RetryAt(ACCEPTED + 29 * MINUTE)


def test_a_success_is_no_case_for_a_retry() -> None:
    with pytest.raises(ValueError, match="nothing to retry"):
        decided(Verdict(Outcome.DELIVERED, Reason.OK, 202))


@given(
    policy=policies,
    attempts=st.integers(1, 60),
    after_ms=st.integers(0, 3 * DAY),
    expire=st.one_of(st.just(0), st.integers(1, 3 * DAY)),
    max_retry_ms=st.integers(1000, 3 * DAY),
    retry_after_ms=st.one_of(st.none(), st.integers(0, 40 * DAY)),
    scale=scales,
    jitter=jitters,
)
def test_a_retry_is_always_in_the_future_and_within_the_deliverys_time(
    policy: RetryPolicy,
    attempts: int,
    after_ms: int,
    expire: int,
    max_retry_ms: int,
    retry_after_ms: int | None,
    scale: float,
    jitter: float,
) -> None:
    now_ms = ACCEPTED + after_ms
    expire_ms = ACCEPTED + expire if expire else 0
    match decide(
        policy,
        Verdict(Outcome.RETRY, Reason.UNAVAILABLE, 503, retry_after_ms=retry_after_ms),
        attempts,
        now_ms=now_ms,
        accepted_ms=ACCEPTED,
        expire_ms=expire_ms,
        max_retry_ms=max_retry_ms,
        scale=scale,
        jitter=jitter,
    ):
        case RetryAt(due_ms):
            assert now_ms <= due_ms < ACCEPTED + max_retry_ms
            assert not expire_ms or due_ms < expire_ms
            assert attempts <= policy.retries
        case GiveUp(reason):
            assert reason in (Reason.RETRIES_EXHAUSTED, Reason.MAX_AGE, Reason.EXPIRED)
