"""From what an attempt gave to what becomes of the delivery. Needs no I/O."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final, NamedTuple, Protocol, assert_never

import structlog

from fedsvc.config import Settings
from fedsvc.domain.classify import Outcome, Verdict, words
from fedsvc.domain.delivery import Attempt, DeliveryState, Priority, Reason
from fedsvc.domain.keys import PrivateKey
from fedsvc.domain.knock import Dialect
from fedsvc.domain.message import UNKNOWN, Message
from fedsvc.domain.retry import DEFAULT_POLICY, GiveUp, RetryAt, decide, missing_since
from fedsvc.errors import HandlerFailed
from fedsvc.handlers.registry import Registry
from fedsvc.queue.consumer import NO_SIGNAL, Admitted, Clock, Settlement, Signal
from fedsvc.queue.record import FLAG_CANCEL, FLAG_SUPERSEDE, shown

log = structlog.get_logger(__name__)

_TOOK: Final = Signal.ANSWERED | Signal.TOOK


def signal_of(verdict: Verdict) -> Signal:
    """What an answer tells of its host. One that answers is there, whatever it says; a failure of ours tells
    nothing."""
    if verdict.reason is Reason.OK:
        return _TOOK  # nearly always; flags that are put together anew cost a microsecond each
    signal = Signal(0)
    if verdict.counts_against_host:
        signal |= Signal.FAILED
        if verdict.reason is Reason.DNS_NOT_FOUND:
            signal |= Signal.NO_NAME
    elif verdict.status:
        signal |= Signal.ANSWERED
    if verdict.slows_host:
        signal |= Signal.SLOWED
    if verdict.outcome is Outcome.DELIVERED:
        signal |= Signal.TOOK
    if verdict.inbox_gone:
        signal |= Signal.INBOX_GONE
    return signal


class Tried(Protocol):
    """What the deliverer tells of one attempt."""

    @property
    def verdict(self) -> Verdict: ...
    @property
    def latency_ms(self) -> int: ...
    @property
    def learnt(self) -> Dialect: ...


class Delivers(Protocol):
    """What tries a delivery: see `deliverer.py`."""

    async def deliver(
        self,
        message: Message,
        inbox: str,
        key: PrivateKey,
        priority: Priority,
        dialect: Dialect,
        sent: Callable[[], None],
    ) -> Tried: ...


class _Told(NamedTuple):
    """What an attempt tells of its host; the last fields of a Settlement."""

    signal: Signal = NO_SIGNAL
    latency_ms: int = 0
    pause_ms: int = 0
    learnt: Dialect = Dialect.UNKNOWN


_NOT_TOLD: Final = _Told()


class Judge:
    def __init__(
        self, settings: Settings, clock: Clock, random: Callable[[], float], handlers: Registry
    ) -> None:
        """`random`: a number in [0, 1), for jitter."""
        self._handlers = handlers
        self._clock = clock
        self._random = random
        self._scale = settings.retry_scale
        self._max_retry_ms = settings.max_retry_duration * 1000

    def tried(self, admitted: Admitted, message: Message, tried: Tried, started_ms: int) -> Settlement:
        """After an attempt."""
        verdict = tried.verdict
        attempt = Attempt(started_ms, tried.latency_ms, verdict.status, verdict.reason)
        told = _Told(
            signal_of(verdict),
            tried.latency_ms,
            (verdict.retry_after_ms or 0) if verdict.slows_host else 0,
            tried.learnt,
        )
        match verdict.outcome:
            case Outcome.DELIVERED:
                return self._ended(admitted, message, DeliveryState.DELIVERED, verdict, attempt, told=told)
            case Outcome.RETRY | Outcome.PERMANENT:
                return self._failed(admitted, message, verdict, attempt, told)
            case Outcome.FOLLOW:
                raise ValueError("a redirect must not leave the deliverer")
            case _:
                assert_never(verdict.outcome)

    def untried(
        self, admitted: Admitted, message: Message, reason: Reason, detail: str, started_ms: int
    ) -> Settlement:
        """When something on our side was missing that may come back. Uses up a retry."""
        verdict = Verdict(Outcome.RETRY, reason, detail=detail)
        return self._failed(admitted, message, verdict, Attempt(started_ms, 0, 0, reason))

    def overdue(self, admitted: Admitted, message: Message) -> Settlement | None:
        """Before an attempt: a delivery whose time is over is not tried any more, nor one that was taken back
        while a worker had it that has died."""
        if admitted.record.flags & (FLAG_CANCEL | FLAG_SUPERSEDE):
            cancelled = admitted.record.flags & FLAG_CANCEL
            state = DeliveryState.CANCELLED if cancelled else DeliveryState.SUPERSEDED
            reason = Reason.CANCELLED if cancelled else Reason.SUPERSEDED
            return self._ended(admitted, message, state, Verdict(Outcome.PERMANENT, reason), None)
        if self._clock.now_ms() < admitted.record.deadline_s * 1000:
            return None
        if admitted.record.expires:
            verdict = Verdict(Outcome.PERMANENT, Reason.EXPIRED)
            return self._ended(admitted, message, DeliveryState.EXPIRED, verdict, None)
        return self._ended(
            admitted, message, DeliveryState.DEAD, Verdict(Outcome.PERMANENT, Reason.MAX_AGE), None
        )

    def broken(self, admitted: Admitted, message: Message | None, reason: Reason, detail: str) -> Settlement:
        """A delivery that cannot be tried, ever: a dead letter, so that it blocks nothing."""
        verdict = Verdict(Outcome.PERMANENT, reason, detail=detail)
        return self._ended(admitted, message or UNKNOWN, DeliveryState.DEAD, verdict, None)

    def _failed(
        self,
        admitted: Admitted,
        message: Message,
        verdict: Verdict,
        attempt: Attempt,
        told: _Told = _NOT_TOLD,
    ) -> Settlement:
        record = admitted.record
        deadline_ms = record.deadline_s * 1000
        policy = DEFAULT_POLICY
        if verdict.outcome is Outcome.RETRY:
            try:
                policy = self._handlers.retry(message.activity_type)
            except HandlerFailed as error:
                log.error("handler_failed", handler=error.handler, exc_info=error.__cause__)
                verdict = Verdict(Outcome.PERMANENT, Reason.HANDLER_ERROR, verdict.status, detail=str(error))
        now_ms, accepted_ms, missing_ms = self._clock.now_ms(), admitted.id.accepted_ms, 0
        if verdict.reason is Reason.DNS_NOT_FOUND:
            # Where the caller's expiry is the deadline, that does not tell when its time began.
            begun_ms = accepted_ms if record.expires else max(accepted_ms, deadline_ms - self._max_retry_ms)
            missing_ms = missing_since(record.history, begun_ms, now_ms)
        decision = decide(
            policy,
            verdict,
            record.tries + 1,
            now_ms=now_ms,
            accepted_ms=accepted_ms,
            expire_ms=record.expire_ms,
            # past the caller's expiry, where there is one, so that it is that which ends the delivery
            max_retry_ms=deadline_ms - accepted_ms + record.expires,
            missing_ms=missing_ms,
            scale=self._scale,
            jitter=self._random(),
        )
        match decision:
            case RetryAt(due_ms):
                tried = record.tried(attempt, DeliveryState.RETRY)
                return Settlement(admitted, DeliveryState.RETRY, True, tried, due_ms, None, *told)
            case GiveUp(Reason.EXPIRED as reason):
                return self._ended(
                    admitted, message, DeliveryState.EXPIRED, verdict, attempt, reason, told=told
                )
            case GiveUp(reason):
                if verdict.reason is Reason.UNAUTHORIZED:
                    told = told._replace(signal=told.signal | Signal.KEY_REJECTED)
                return self._ended(admitted, message, DeliveryState.DEAD, verdict, attempt, reason, told=told)
            case _:
                assert_never(decision)

    def _ended(
        self,
        admitted: Admitted,
        message: Message,
        state: DeliveryState,
        verdict: Verdict,
        attempt: Attempt | None,
        reason: Reason | None = None,
        *,
        told: _Told = _NOT_TOLD,
    ) -> Settlement:
        delivery = shown(
            admitted.id,
            admitted.record,
            message,
            state,
            attempt=attempt,
            reason=reason or verdict.reason,
            status=verdict.status,
            snippet=words(verdict),
        )
        dead = None
        if state is DeliveryState.DEAD:
            record = admitted.record
            dead = record.tried(attempt, state) if attempt is not None else replace(record, state=state)
        return Settlement(admitted, state, attempt is not None, dead, 0, delivery, *told)
