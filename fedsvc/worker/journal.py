"""Tells of each attempt: a line of the log, and the span of a delivery whose call was traced.

There is none where nobody asked for either, so that it costs nothing then.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Self

import structlog

from fedsvc.config import Settings
from fedsvc.domain.delivery import DeliveryState
from fedsvc.domain.inbox import host_of
from fedsvc.domain.message import Message
from fedsvc.queue.consumer import Admitted, Settlement
from fedsvc.tracing import AttemptTold, Tracing, trace_id

log = structlog.get_logger(__name__)


class Journal:
    def __init__(self, tell: Callable[..., Any] | None, tracing: Tracing | None) -> None:
        """`tell` takes an event's name and its fields."""
        self._tell = tell
        self._tracing = tracing

    @classmethod
    def of(cls, settings: Settings, tracing: Tracing | None) -> Self | None:
        """None if there is nothing to tell, by settings."""
        tell = None
        if settings.log_deliveries:
            tell = log.info
        elif logging.getLogger(__name__).isEnabledFor(logging.DEBUG):
            tell = log.debug
        return None if tell is None and tracing is None else cls(tell, tracing)

    def attempted(self, admitted: Admitted, message: Message, settlement: Settlement) -> None:
        """An attempt has just ended, and this is to become of its delivery."""
        if self._tell is not None:
            _tell(self._tell, admitted, message, settlement)
        if self._tracing is not None and message.trace:
            self._tracing.attempt(message.trace, _span(admitted, message, settlement))


def _tell(tell: Callable[..., Any], admitted: Admitted, message: Message, settlement: Settlement) -> None:
    """Other ends have lines of their own, in any case."""
    reason, status = _said(settlement)
    fields: dict[str, Any] = {
        "delivery": str(admitted.id), "activity": message.activity_id,
        "host": host_of(admitted.record.inbox), "request_id": message.request_id,
        "attempt": admitted.record.attempts + 1, "reason": reason, "status": status,
        "latency_ms": settlement.latency_ms,
    }  # fmt: skip
    if message.trace:
        fields["trace_id"] = trace_id(message.trace)
    if settlement.state is DeliveryState.DELIVERED:
        tell("delivered", **fields)
    elif settlement.state is DeliveryState.RETRY:
        tell("retry", due_ms=settlement.due_ms, **fields)


def _span(admitted: Admitted, message: Message, settlement: Settlement) -> AttemptTold:
    reason, status = _said(settlement)
    delivered = settlement.state is DeliveryState.DELIVERED
    attributes: dict[str, str | int | bool] = {
        "server.address": host_of(admitted.record.inbox),
        "fedsvc.activity": message.activity_id,
        "fedsvc.activity_type": message.activity_type,
        "fedsvc.origin": message.origin,
        "fedsvc.priority": admitted.record.priority.name.lower(),
        "fedsvc.outcome": settlement.state.name.lower(),
        "fedsvc.reason": reason,
        "fedsvc.since_accepted_ms": max(0, _started_ms(settlement) - admitted.id.accepted_ms),
    }
    if message.request_id:
        attributes["fedsvc.request_id"] = message.request_id
    if status:
        attributes["http.response.status_code"] = status
    return AttemptTold(
        name="deliver",
        delivery=str(admitted.id),
        number=admitted.record.attempts + 1,
        latency_ms=settlement.latency_ms,
        problem="" if delivered else reason,
        attributes=attributes,
    )


def _said(settlement: Settlement) -> tuple[str, int]:
    """Reason and HTTP status of the attempt that was made; the status is 0 if there was no answer."""
    record = settlement.record or settlement.outcome
    last = record.history[-1] if record is not None and record.history else None
    return ("", 0) if last is None else (last.reason.name.lower(), last.status)


def _started_ms(settlement: Settlement) -> int:
    record = settlement.record or settlement.outcome
    return record.history[-1].time_ms if record is not None and record.history else 0
