"""What becomes of a delivery after each kind of attempt."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from fedsvc.config import Settings
from fedsvc.domain.classify import Outcome, Verdict
from fedsvc.domain.delivery import Attempt, DeliveryId, DeliveryState, Priority, Reason
from fedsvc.domain.knock import Dialect
from fedsvc.domain.message import Message
from fedsvc.domain.retry import RetryPolicy
from fedsvc.handlers import Handler
from fedsvc.handlers.registry import Registry
from fedsvc.queue.consumer import Admitted, Clock, Settlement, Signal
from fedsvc.queue.record import FLAG_CANCEL, FLAG_EXPIRES, FLAG_SUPERSEDE, Record
from fedsvc.worker.settlements import Judge

NOW_MS = 1_763_900_000_000
ID = DeliveryId(1, NOW_MS * 1000 - 60_000_000)  # accepted a minute ago
MESSAGE = Message(b"{}", "https://me.example/1", "Like", "https://me.example/u/a", "k", "f", "me.example")
LIKE_RETRIES = 5


@dataclass(frozen=True)
class Told:
    verdict: Verdict
    latency_ms: int = 20
    learnt: Dialect = Dialect.UNKNOWN


class Fixed(Clock):
    def now_ms(self) -> int:
        return NOW_MS


@pytest.fixture
def judge() -> Judge:
    return Judge(Settings.from_environment({}), Fixed(), lambda: 0.0, Registry.built_in())


def admitted(attempts: int = 0, *, flags: int = 0, deadline_ms: int = NOW_MS + 3_600_000) -> Admitted:
    history = tuple(Attempt(NOW_MS, 1, 503, Reason.UNAVAILABLE) for _ in range(attempts))
    record = Record(
        DeliveryState.READY, flags, Priority.URGENT, 7, attempts, attempts, deadline_ms // 1000, 5, 9,
        "https://a.example/inbox", history,
    )  # fmt: skip
    return Admitted(ID, 1, 9, record, 1)


def judged(judge: Judge, verdict: Verdict, delivery: Admitted | None = None) -> Settlement:
    return judge.tried(delivery or admitted(), MESSAGE, Told(verdict), NOW_MS)


def test_a_delivery_that_was_taken_is_delivered(judge: Judge) -> None:
    settlement = judged(judge, Verdict(Outcome.DELIVERED, Reason.OK, 202))
    assert (settlement.state, settlement.attempted) == (DeliveryState.DELIVERED, True)
    told = settlement.outcome
    assert told is not None
    assert (told.attempts, told.reason, told.status, told.host) == (1, Reason.OK, 202, "a.example")
    assert told.history == (Attempt(NOW_MS, 20, 202, Reason.OK),)


def test_a_failure_that_may_pass_is_tried_again_later(judge: Judge) -> None:
    settlement = judged(judge, Verdict(Outcome.RETRY, Reason.UNAVAILABLE, 503))
    assert settlement.state is DeliveryState.RETRY
    assert settlement.due_ms == NOW_MS + 30_000  # a Like's first delay
    assert settlement.record is not None
    assert settlement.record.attempts == 1
    assert settlement.record.history[-1].reason is Reason.UNAVAILABLE
    assert settlement.outcome is None


def test_delays_are_scaled_by_the_setting() -> None:
    settings = Settings.from_environment({"FEDSVC_RETRY_SCALE": "0.1"})
    quick = Judge(settings, Fixed(), lambda: 0.0, Registry.built_in())
    assert judged(quick, Verdict(Outcome.RETRY, Reason.UNAVAILABLE, 503)).due_ms == NOW_MS + 3_000


class Broken(Handler):
    @property
    def retry(self) -> RetryPolicy:  # type: ignore[override]
        raise KeyError("policy")


@pytest.fixture
def broken() -> Judge:
    """One that goes by a handler whose retry policy cannot be had."""
    return Judge(Settings.from_environment({}), Fixed(), lambda: 0.0, Registry({"Like": Broken()}))


def test_a_failure_whose_retry_policy_cannot_be_had_is_a_dead_letter_that_names_the_handler(
    broken: Judge,
) -> None:
    settlement = judged(broken, Verdict(Outcome.RETRY, Reason.UNAVAILABLE, 503, "try later"))
    assert settlement.state is DeliveryState.DEAD
    assert settlement.outcome is not None
    assert (settlement.outcome.reason, settlement.outcome.status) == (Reason.HANDLER_ERROR, 503)
    assert "Broken, failed" in settlement.outcome.snippet
    assert settlement.outcome.history[-1].reason is Reason.UNAVAILABLE


def test_a_broken_retry_policy_matters_only_where_it_is_needed(broken: Judge) -> None:
    assert judged(broken, Verdict(Outcome.DELIVERED, Reason.OK, 202)).state is DeliveryState.DELIVERED
    gone = judged(broken, Verdict(Outcome.PERMANENT, Reason.GONE, 410)).outcome
    assert gone is not None
    assert gone.reason is Reason.GONE


def test_a_permanent_failure_is_a_dead_letter_with_its_reason(judge: Judge) -> None:
    settlement = judged(judge, Verdict(Outcome.PERMANENT, Reason.GONE, 410, "gone"))
    assert settlement.state is DeliveryState.DEAD
    assert settlement.record is not None
    assert settlement.outcome is not None
    assert (settlement.outcome.reason, settlement.outcome.snippet) == (Reason.GONE, "gone")


def test_the_last_retry_is_followed_by_a_dead_letter(judge: Judge) -> None:
    failure = Verdict(Outcome.RETRY, Reason.SERVER_ERROR, 500)
    assert judged(judge, failure, admitted(LIKE_RETRIES - 1)).state is DeliveryState.RETRY
    last = judged(judge, failure, admitted(LIKE_RETRIES))
    assert last.state is DeliveryState.DEAD
    assert last.outcome is not None
    assert last.outcome.reason is Reason.RETRIES_EXHAUSTED
    assert last.outcome.history[-1].reason is Reason.SERVER_ERROR


MISSING, BUSY = Reason.DNS_NOT_FOUND, Reason.UNAVAILABLE


@pytest.mark.parametrize(
    ("begun_h", "before", "state"),
    [
        (30, [(BUSY, 29)] * 5, DeliveryState.RETRY),
        (30, [(MISSING, 29), (BUSY, 28), (MISSING, 23), (MISSING, 9)], DeliveryState.RETRY),
        (30, [(BUSY, 28), (MISSING, 24), (MISSING, 9)], DeliveryState.DEAD),
        (30, [(MISSING, 29)] * 5, DeliveryState.DEAD),
        # Of the oldest attempts nothing is known any more.
        (30, [(MISSING, 15)] * 16, DeliveryState.DEAD),
        (23, [(MISSING, 15)] * 16, DeliveryState.RETRY),
        # replayed, or accepted long before it was to be sent
        (1, [(MISSING, 29)] * 16, DeliveryState.RETRY),
        (1, [(MISSING, 29)] * 5, DeliveryState.RETRY),
    ],
)
def test_a_name_has_a_day_from_when_it_was_first_missed(
    judge: Judge, begun_h: int, before: list[tuple[Reason, int]], state: DeliveryState
) -> None:
    hour = 3_600_000
    delivery = admitted(LIKE_RETRIES, deadline_ms=NOW_MS + (48 - begun_h) * hour)
    history = tuple(Attempt(NOW_MS - hours * hour, 1, 0, reason) for reason, hours in before)
    accepted = DeliveryId(1, (NOW_MS - 30 * hour) * 1000)
    delivery = replace(delivery, id=accepted, record=replace(delivery.record, history=history))
    assert judged(judge, Verdict(Outcome.RETRY, MISSING), delivery).state is state


@pytest.mark.parametrize(
    ("verdict", "signal", "pause_ms"),
    [
        (Verdict(Outcome.DELIVERED, Reason.OK, 202), Signal.ANSWERED | Signal.TOOK, 0),
        (Verdict(Outcome.PERMANENT, Reason.NOT_FOUND, 404), Signal.ANSWERED, 0),
        (
            Verdict(Outcome.PERMANENT, Reason.GONE, 410, inbox_gone=True),
            Signal.ANSWERED | Signal.INBOX_GONE,
            0,
        ),
        (
            Verdict(Outcome.RETRY, Reason.RATE_LIMITED, 429, retry_after_ms=7000, slows_host=True),
            Signal.ANSWERED | Signal.SLOWED,
            7000,
        ),
        (
            Verdict(Outcome.RETRY, Reason.UNAVAILABLE, 503, counts_against_host=True, slows_host=True),
            Signal.FAILED | Signal.SLOWED,
            0,
        ),
        (Verdict(Outcome.RETRY, Reason.SERVER_ERROR, 500, counts_against_host=True), Signal.FAILED, 0),
        (Verdict(Outcome.RETRY, Reason.TIMEOUT, counts_against_host=True), Signal.FAILED, 0),
        (
            Verdict(Outcome.DELIVERED, Reason.SUSPECT, 200, counts_against_host=True),
            Signal.FAILED | Signal.TOOK,
            0,
        ),
        (Verdict(Outcome.RETRY, Reason.WORKER_ERROR), Signal(0), 0),
        (Verdict(Outcome.PERMANENT, Reason.ADDRESS_REFUSED), Signal(0), 0),
    ],
)
def test_an_attempt_tells_of_the_host(judge: Judge, verdict: Verdict, signal: Signal, pause_ms: int) -> None:
    settlement = judged(judge, verdict)
    assert (settlement.signal, settlement.latency_ms, settlement.pause_ms) == (signal, 20, pause_ms)


@pytest.mark.parametrize(
    ("reason", "attempts", "rejected"),
    [
        (Reason.UNAUTHORIZED, 0, False),
        (Reason.UNAUTHORIZED, LIKE_RETRIES, True),
        (Reason.FORBIDDEN, LIKE_RETRIES, False),
    ],
)
def test_a_key_that_is_refused_to_the_end_is_told(
    judge: Judge, reason: Reason, attempts: int, rejected: bool
) -> None:
    settlement = judged(judge, Verdict(Outcome.RETRY, reason, 401), admitted(attempts))
    assert (Signal.KEY_REJECTED in settlement.signal, Signal.ANSWERED in settlement.signal) == (
        rejected,
        True,
    )


def test_no_delivery_lives_past_its_time(judge: Judge) -> None:
    failure = Verdict(Outcome.RETRY, Reason.SERVER_ERROR, 500)
    soon = judged(judge, failure, admitted(deadline_ms=NOW_MS + 1000))
    assert soon.state is DeliveryState.DEAD
    assert soon.outcome is not None
    assert soon.outcome.reason is Reason.MAX_AGE
    expiring = judged(judge, failure, admitted(flags=FLAG_EXPIRES, deadline_ms=NOW_MS + 1000))
    assert expiring.state is DeliveryState.EXPIRED


def test_what_is_overdue_is_not_tried(judge: Judge) -> None:
    assert judge.overdue(admitted(), MESSAGE) is None
    too_old = judge.overdue(admitted(deadline_ms=NOW_MS), MESSAGE)
    assert too_old is not None
    assert (too_old.state, too_old.attempted) == (DeliveryState.DEAD, False)
    expired = judge.overdue(admitted(flags=FLAG_EXPIRES, deadline_ms=NOW_MS), MESSAGE)
    assert expired is not None
    assert expired.state is DeliveryState.EXPIRED


@pytest.mark.parametrize(
    ("flag", "state", "reason"),
    [
        (FLAG_CANCEL, DeliveryState.CANCELLED, Reason.CANCELLED),
        (FLAG_SUPERSEDE, DeliveryState.SUPERSEDED, Reason.SUPERSEDED),
    ],
)
def test_what_was_taken_back_while_a_dead_worker_had_it_is_not_tried(
    judge: Judge, flag: int, state: DeliveryState, reason: Reason
) -> None:
    ended = judge.overdue(admitted(flags=flag), MESSAGE)
    assert ended is not None
    assert ended.outcome is not None
    assert (ended.state, ended.attempted, ended.outcome.reason) == (state, False, reason)


def test_a_missing_key_may_come_back(judge: Judge) -> None:
    settlement = judge.untried(admitted(), MESSAGE, Reason.KEY_UNAVAILABLE, "not stored", NOW_MS)
    assert settlement.state is DeliveryState.RETRY
    assert settlement.record is not None
    assert settlement.record.history[-1].reason is Reason.KEY_UNAVAILABLE


@pytest.mark.parametrize(("message", "activity"), [(MESSAGE, "https://me.example/1"), (None, "")])
def test_what_can_never_be_tried_is_a_dead_letter_at_once(
    judge: Judge, message: Message | None, activity: str
) -> None:
    settlement = judge.broken(admitted(), message, Reason.BODY_MISSING, "it is gone")
    assert (settlement.state, settlement.attempted) == (DeliveryState.DEAD, False)
    assert settlement.outcome is not None
    assert (settlement.outcome.reason, settlement.outcome.snippet) == (Reason.BODY_MISSING, "it is gone")
    assert settlement.outcome.activity_id == activity
