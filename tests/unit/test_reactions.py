"""Handlers hear of outcomes off the hot path, and harm nothing whatever they do."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import structlog

from fedsvc.domain.delivery import Delivery, DeliveryId, DeliveryState, Priority, Reason
from fedsvc.handlers import DeliveryOutcome, Handler
from fedsvc.handlers.registry import Registry
from fedsvc.worker.reactions import DROPPED, FAILED, Reactions

React = Callable[[DeliveryOutcome], None]


def registry(react: React) -> Registry:
    class Joins(Handler):
        types = ("Join",)

        def on_outcome(self, outcome: DeliveryOutcome) -> None:
            react(outcome)

    return Registry({"Join": Joins(), "Leave": Handler()})


def delivery(number: int = 1, kind: str = "Join") -> Delivery:
    return Delivery(
        DeliveryId(3, number), DeliveryState.DEAD, "https://me.example/1", kind, "https://me.example/u/a",
        "https://a.example/inbox", "a.example", "me.example", "k", Priority.BULK, attempts=2,
        reason=Reason.GONE, status=410, snippet="gone",
    )  # fmt: skip


def test_a_handler_is_told_of_its_outcomes_in_order_and_in_another_thread() -> None:
    told: list[tuple[DeliveryOutcome, str]] = []
    reactions = Reactions(registry(lambda outcome: told.append((outcome, threading.current_thread().name))))
    for number in range(1, 4):
        reactions.tell(delivery(number))
        reactions.tell(delivery(number, "Leave"))
        reactions.tell(delivery(number, "Like"))
    reactions.close()
    assert [outcome.delivery_id for outcome, _ in told] == ["3-1", "3-2", "3-3"]
    assert told[0] == (
        DeliveryOutcome(
            "3-1", "https://me.example/1", "Join", "https://a.example/inbox", "a.example",
            DeliveryState.DEAD, 410, Reason.GONE, 2, "gone",
        ),
        "reactions",
    )  # fmt: skip


def test_where_no_handler_reacts_there_is_no_thread() -> None:
    before = threading.active_count()
    reactions = Reactions(Registry.built_in())
    reactions.tell(delivery())
    assert threading.active_count() == before
    reactions.close()


def test_a_handler_that_raises_is_logged_and_told_of_the_next() -> None:
    told: list[str] = []

    def react(outcome: DeliveryOutcome) -> None:
        told.append(outcome.delivery_id)
        if len(told) == 1:
            raise ValueError("bad")

    failed = FAILED._value.get()
    with structlog.testing.capture_logs() as logs:
        reactions = Reactions(registry(react))
        reactions.tell(delivery(1))
        reactions.tell(delivery(2))
        reactions.close()
    assert told == ["3-1", "3-2"]
    assert FAILED._value.get() == failed + 1
    (logged,) = logs
    assert (logged["event"], logged["delivery"]) == ("reaction_failed", "3-1")
    assert isinstance(logged["exc_info"], ValueError)


def test_one_that_hangs_holds_nobody_up_and_what_is_too_much_is_dropped_counted_and_told_now_and_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Reactions, "LIMIT", 2)
    monkeypatch.setattr(Reactions, "GRACE", 0.0)
    busy, go, done = threading.Event(), threading.Event(), threading.Event()
    told: list[str] = []
    now = 0.0

    def react(outcome: DeliveryOutcome) -> None:
        busy.set()
        go.wait(10)
        told.append(outcome.delivery_id)
        if len(told) == 3:
            done.set()

    dropped = DROPPED._value.get()
    with structlog.testing.capture_logs() as logs:
        reactions = Reactions(registry(react), lambda: now)
        reactions.tell(delivery(1))
        assert busy.wait(10)
        for number in range(2, 7):
            reactions.tell(delivery(number))
        assert [log["event"] for log in logs] == ["reactions_dropped"]
        assert DROPPED._value.get() == dropped + 3
        now = Reactions.QUIET
        reactions.tell(delivery(7))
        assert [(log["event"], log["dropped"]) for log in logs] == [
            ("reactions_dropped", 1),
            ("reactions_dropped", 4),
        ]
        reactions.close()
        assert logs[-1] == {"event": "reactions_given_up", "log_level": "warning", "waiting": 2}
    go.set()
    assert done.wait(10)
    assert told == ["3-1", "3-2", "3-3"]
