"""When a delivery is tried again, and when it is given up.

The delay after attempt n is `first * factor**(n-1)`, at most `longest`, of which a random 80 to 100
percent is waited. The jitter only shortens: all deliveries to a host that fails fail in the same
second, and they must stay spread out also once the longest delay is reached, which must stay a bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from fedsvc.domain.classify import Outcome, Verdict
from fedsvc.domain.delivery import MAX_HISTORY, Attempt, Reason

#: a policy's retries, at most
MAX_RETRIES: Final = 100
#: share of a delay that the jitter may take away
JITTER: Final = 0.2
#: retries after a 401 or 403: the remote may have failed to fetch our key, but a block stays a block
UNAUTHORIZED_RETRIES: Final = 3
#: seconds, before FEDSVC_RETRY_SCALE, for which a name may be missing: a registration that lapsed, or name
#: servers that were set up wrongly, are put right within a day
NAME_GRACE_S: Final = 86_400.0
#: a last try is made this long before the end of a delivery's time (or a tenth of it, if shorter)
LAST_TRY_MARGIN_MS: Final = 60_000


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Attempts are one more than `retries`. Delays are in seconds, before FEDSVC_RETRY_SCALE."""

    retries: int
    factor: float
    first_delay_s: float
    longest_delay_s: float

    def problem(self) -> str:
        """What is wrong with its numbers, in words; empty if nothing is."""
        if type(self.retries) is not int or not 0 <= self.retries <= MAX_RETRIES:
            return f"retries is no whole number from 0 to {MAX_RETRIES}"
        for name, least in (("factor", 1.0), ("first_delay_s", 0.001), ("longest_delay_s", 0.001)):
            number = getattr(self, name)
            if not isinstance(number, (int, float)) or not least <= number < math.inf:
                return f"{name} is no number of at least {least}"
        return ""


DEFAULT_POLICY: Final = RetryPolicy(10, 2.0, 60, 3600)


class RetryAt(NamedTuple):
    due_ms: int  # milliseconds since the epoch


class GiveUp(NamedTuple):
    reason: Reason


Decision = RetryAt | GiveUp


def delay_ms(policy: RetryPolicy, attempts_made: int, *, scale: float = 1.0, jitter: float = 0.0) -> int:
    """Milliseconds to wait after `attempts_made` (from 1) attempts. `jitter` is random in [0, 1): 0 is
    the whole delay, towards 1 is 80 percent of it. Never more than the longest delay times `scale`."""
    try:
        growth = float(policy.factor) ** max(attempts_made - 1, 0)
    except OverflowError:
        growth = math.inf
    delay = min(policy.first_delay_s * growth, policy.longest_delay_s) * scale
    return int(delay * (1 - JITTER * jitter) * 1000)


def missing_since(history: Sequence[Attempt], begun_ms: int, now_ms: int) -> int:
    """When a name that does not exist now was first missed, as far as a delivery's attempts tell. `begun_ms`:
    when its time began, as it was accepted, to be sent, or replayed; what was before does not count."""
    since_ms = now_ms
    for attempt in reversed(history):
        if attempt.reason is not Reason.DNS_NOT_FOUND:
            return max(since_ms, begun_ms)
        since_ms = attempt.time_ms
    # Past so many, the oldest are not known any more.
    return max(since_ms, begun_ms) if len(history) < MAX_HISTORY else begun_ms


def decide(
    policy: RetryPolicy,
    verdict: Verdict,
    attempts_made: int,
    *,
    now_ms: int,
    accepted_ms: int,
    expire_ms: int,
    max_retry_ms: int,
    missing_ms: int = 0,
    scale: float = 1.0,
    jitter: float = 0.0,
) -> Decision:
    """What follows a failed attempt. `attempts_made` (from 1) includes it; `expire_ms` 0 is never;
    `missing_ms` matters if a name does not exist: see `missing_since`.

    - A permanent verdict is given up with its own reason, as is a refusal (401, 403) after
      UNAUTHORIZED_RETRIES; other verdicts when the retries are used up (RETRIES_EXHAUSTED), but a name
      that does not exist not before it has been missing for NAME_GRACE_S.
    - Retry-After is a lower bound: never sooner than the remote asks, nor than our own backoff. It is
      spread out upwards a little, so that what a host held back does not return in one instant.
    - A try that would fall past the end of the delivery's time (its age limit or its expiry) is
      brought forward to shortly before the end, if at least half of the backoff remains till then:
      one last chance, after which the delivery is given up (MAX_AGE or EXPIRED).

    Raises ValueError for a verdict that is no failure.
    """
    if verdict.outcome is Outcome.PERMANENT:
        return GiveUp(verdict.reason)
    if verdict.outcome is not Outcome.RETRY:
        raise ValueError(f"nothing to retry after {verdict.outcome.name}")
    if verdict.reason in (Reason.UNAUTHORIZED, Reason.FORBIDDEN):
        if attempts_made > min(UNAUTHORIZED_RETRIES, policy.retries):
            return GiveUp(verdict.reason)
    elif attempts_made > policy.retries and not (
        verdict.reason is Reason.DNS_NOT_FOUND and now_ms - missing_ms < NAME_GRACE_S * 1000 * scale
    ):
        return GiveUp(Reason.RETRIES_EXHAUSTED)

    end_ms, too_late = accepted_ms + max_retry_ms, Reason.MAX_AGE
    if 0 < expire_ms < end_ms:
        end_ms, too_late = expire_ms, Reason.EXPIRED
    if now_ms >= end_ms:
        return GiveUp(too_late)

    backoff = delay_ms(policy, attempts_made, scale=scale, jitter=jitter)
    wait = backoff
    if verdict.retry_after_ms is not None:
        asked = verdict.retry_after_ms
        wait = max(backoff, asked + int(min(asked * JITTER, 60_000) * jitter))
    last_ms = end_ms - min(LAST_TRY_MARGIN_MS, (end_ms - accepted_ms) // 10)
    if now_ms + wait <= last_ms:
        return RetryAt(now_ms + wait)
    if last_ms > now_ms and (last_ms - now_ms) * 2 >= backoff:
        return RetryAt(last_ms)
    return GiveUp(too_late)
