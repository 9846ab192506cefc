"""Tells handlers how deliveries ended, in a thread of its own, so that no delivery waits for them."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import structlog
from prometheus_client import Counter

from fedsvc.domain.delivery import Delivery
from fedsvc.handlers.base import DeliveryOutcome
from fedsvc.handlers.registry import Registry

log = structlog.get_logger(__name__)

DROPPED = Counter("fedsvc_reactions_dropped", "Outcomes that no handler was told of, as too many waited.")
FAILED = Counter("fedsvc_reactions_failed", "Outcomes upon which a handler raised.")

_Waiting = tuple[Callable[[DeliveryOutcome], None], Delivery]


class Reactions:
    #: outcomes that wait for handlers, at most
    LIMIT: Final = 1000
    #: seconds that `close` gives to what still waits
    GRACE: Final = 2.0
    #: seconds between two warnings that outcomes are dropped
    QUIET: Final = 60.0

    def __init__(self, handlers: Registry, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._handlers = handlers
        self._waiting: queue.Queue[_Waiting | None] = queue.Queue(self.LIMIT)
        self._monotonic = monotonic
        #: outcomes dropped since the start; and until when (by `monotonic`) it is not logged again
        self._dropped = 0
        self._quiet_until = -math.inf
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="reactions", daemon=True)
        self._started = handlers.reacts
        if self._started:
            self._thread.start()

    def tell(self, delivery: Delivery) -> None:
        """Have its handler told of a delivery that has ended, if it wants to know. Never waits."""
        if not self._started:
            return
        react = self._handlers.reaction(delivery.activity_type)
        if react is None:
            return
        try:
            self._waiting.put_nowait((react, delivery))
        except queue.Full:
            DROPPED.inc()
            self._dropped += 1
            if self._monotonic() >= self._quiet_until:
                self._quiet_until = self._monotonic() + self.QUIET
                log.warning("reactions_dropped", type=delivery.activity_type, dropped=self._dropped)

    def close(self) -> None:
        """Give what still waits GRACE seconds. Blocks."""
        if not self._started:
            return
        self._closing = True
        with suppress(queue.Full):  # whoever takes the last of many sees that we are closing
            self._waiting.put_nowait(None)
        self._thread.join(self.GRACE)
        if self._thread.is_alive():
            log.warning("reactions_given_up", waiting=self._waiting.qsize())

    def _run(self) -> None:
        while not (self._closing and self._waiting.empty()):
            item = self._waiting.get()
            if item is None:
                return
            react, delivery = item
            try:
                react(outcome_of(delivery))
            except Exception as error:
                FAILED.inc()
                log.error("reaction_failed", delivery=str(delivery.id), exc_info=error)


def outcome_of(delivery: Delivery) -> DeliveryOutcome:
    """What handlers are told of a delivery."""
    return DeliveryOutcome(
        delivery_id=str(delivery.id),
        activity_id=delivery.activity_id,
        activity_type=delivery.activity_type,
        inbox=delivery.inbox,
        host=delivery.host,
        state=delivery.state,
        status=delivery.status,
        reason=delivery.reason,
        attempts=delivery.attempts,
        snippet=delivery.snippet,
    )
