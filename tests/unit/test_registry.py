"""Which handlers are taken, which are refused at start, and what becomes of one that fails."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from types import ModuleType
from typing import Any

import pytest

from fedsvc.domain.retry import DEFAULT_POLICY, RetryPolicy
from fedsvc.errors import ConfigurationError, HandlerFailed, InvalidActivity
from fedsvc.handlers import Activity, DeliveryOutcome, Handler, Priority, Relation, Rule
from fedsvc.handlers.registry import Registry

NOTHING: Any = None
MODULE = "handlers_of_a_test"
JOIN = Activity("https://me.example/1", "Join", "https://me.example/u/a")

Install = Callable[..., EntryPoint]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Makes an entry point of something."""
    module = ModuleType(MODULE)
    monkeypatch.setitem(sys.modules, MODULE, module)

    def made(thing: Any, name: str = "joins") -> EntryPoint:
        setattr(module, name, thing)
        return EntryPoint(name, f"{MODULE}:{name}", "fedsvc.handlers")

    return made


def handler(**members: Any) -> type[Handler]:
    return type("Joins", (Handler,), {"types": ("Join",), **members})


def raising(error: Exception) -> Callable[..., Any]:
    def method(*_: Any) -> Any:
        raise error

    return method


def test_a_type_that_nobody_handles_has_the_default() -> None:
    registry = Registry.load([])
    assert registry.rules(JOIN) == (Priority.BULK, Relation())
    assert registry.retry("Join") == DEFAULT_POLICY
    assert registry.types == Registry.built_in().types
    assert not registry.reacts


def test_a_handler_that_is_installed_adds_its_types(install: Install) -> None:
    policy = RetryPolicy(1, 1.0, 5, 5)
    mine = handler(
        types=("Join", "Leave"),
        priority=Priority.URGENT,
        retry=policy,
        relation=lambda self, activity: Relation("key", "family", Rule.SAME_KEY),
    )
    registry = Registry.load([install(mine)])
    for name in ("Join", "Leave"):
        assert type(registry.of(name)) is mine
        assert registry.retry(name) == policy
    assert registry.rules(JOIN) == (Priority.URGENT, Relation("key", "family", Rule.SAME_KEY))
    assert registry.of("Like") is not registry.of("Join")


def test_a_built_in_handler_is_replaced_only_by_one_that_says_so(install: Install) -> None:
    with pytest.raises(ConfigurationError, match=r"handles Like, which is built in: say `replaces = True`"):
        Registry.load([install(handler(types=("Join", "Like")))])
    votes = handler(types=("Like",), replaces=True, priority=Priority.BULK)
    registry = Registry.load([install(votes)])
    assert registry.of("Like").priority is Priority.BULK
    assert registry.of("Dislike").priority is Priority.URGENT


def test_two_handlers_of_one_type_are_refused_and_both_named(install: Install) -> None:
    for replaces in (False, True):
        points = [install(handler(replaces=replaces), name) for name in ("second", "first")]
        with pytest.raises(ConfigurationError) as refused:
            Registry.load(points)
        assert str(refused.value) == (
            f"entry point fedsvc.handlers:second = {MODULE}:second: "
            f"handles Join, as fedsvc.handlers:first = {MODULE}:first does"
        )


@pytest.mark.parametrize(
    ("thing", "problem"),
    [
        (5, "is no subclass of fedsvc.handlers.Handler"),
        (dict, "is no subclass of fedsvc.handlers.Handler"),
        (handler(), ""),
        (handler()(), "is no subclass of fedsvc.handlers.Handler"),
        (handler(types=()), "its types are no tuple of names"),
        (handler(types="Join"), "its types are no tuple of names"),
        (handler(types=("Join", "")), "its types have ''"),
        (handler(types=("a\nb",)), r"its types have 'a\nb'"),
        (handler(types=("x" * 65,)), "printable characters"),
        (handler(types=(5,)), "its types have 5"),
        (handler(types=("Join", "Join")), "twice"),
        (handler(priority=1), "its priority is no Priority"),
        (handler(retry="often"), "its retry is no RetryPolicy"),
        (handler(retry=RetryPolicy(-1, 2.0, 60, 3600)), "retries is no whole number from 0 to 100"),
        (handler(retry=RetryPolicy(101, 2.0, 60, 3600)), "retries is no whole number from 0 to 100"),
        (handler(retry=RetryPolicy(True, 2.0, 60, 3600)), "retries is no whole number"),
        (handler(retry=RetryPolicy(1, 0.5, 60, 3600)), "factor is no number of at least 1.0"),
        (handler(retry=RetryPolicy(1, math.nan, 60, 3600)), "factor is no number"),
        (handler(retry=RetryPolicy(1, 2.0, 0, 3600)), "first_delay_s is no number of at least 0.001"),
        (handler(retry=RetryPolicy(1, 2.0, 60, math.inf)), "longest_delay_s is no number"),
        (handler(retry=property(raising(KeyError("x")))), "cannot be made: KeyError: 'x'"),
        (handler(__init__=lambda self, needed: None), "cannot be made: TypeError"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_sound_handler_is_refused_and_named(install: Install, thing: Any, problem: str) -> None:
    point = install(thing)
    if not problem:
        assert Registry.load([point]).types[-1] == "Join"
        return
    with pytest.raises(ConfigurationError) as refused:
        Registry.load([point])
    assert refused.value.setting == f"entry point fedsvc.handlers:joins = {MODULE}:joins"
    assert problem in refused.value.problem


@pytest.mark.parametrize("value", ["no_such_module_at_all:x", f"{MODULE}:missing", "not even a name"])
def test_an_entry_point_that_cannot_be_loaded_is_named(install: Install, value: str) -> None:
    install(handler())
    with pytest.raises(ConfigurationError, match=r"fedsvc\.handlers:odd = .*: cannot be loaded: "):
        Registry.load([EntryPoint("odd", value, "fedsvc.handlers")])


@pytest.mark.parametrize(
    "members",
    [
        {"check": raising(KeyError("object"))},
        {"relation": raising(RecursionError())},
        {"relation": lambda self, activity: "key"},
        {"relation": lambda self, activity: Relation(NOTHING)},
        {"relation": lambda self, activity: Relation("x" * 5000)},
        {"relation": lambda self, activity: Relation("\ud800")},
        {"relation": lambda self, activity: Relation("a", "b", NOTHING)},
    ],
)
def test_a_handler_that_fails_is_named_and_the_cause_kept(install: Install, members: dict[str, Any]) -> None:
    registry = Registry.load([install(handler(**members))])
    with pytest.raises(HandlerFailed, match=r"^the handler of Join, .*Joins, failed; see the log$") as failed:
        registry.rules(JOIN)
    assert failed.value.__cause__ is not None


def test_a_priority_that_changes_to_nonsense_fails(install: Install) -> None:
    mine = handler()
    registry = Registry.load([install(mine)])
    mine.priority = 7  # type: ignore[assignment]
    mine.retry = None  # type: ignore[assignment]
    with pytest.raises(HandlerFailed):
        registry.rules(JOIN)
    with pytest.raises(HandlerFailed):
        registry.retry("Join")


def test_what_a_handler_refuses_is_told_as_it_says(install: Install) -> None:
    refusal = InvalidActivity("activity.object", "is no event")
    registry = Registry.load([install(handler(check=raising(refusal)))])
    with pytest.raises(InvalidActivity) as refused:
        registry.rules(JOIN)
    assert refused.value is refusal


def test_only_handlers_that_react_are_called(install: Install) -> None:
    told: list[DeliveryOutcome] = []
    registry = Registry.load([install(handler(on_outcome=lambda self, outcome: told.append(outcome)))])
    assert registry.reacts
    assert registry.reaction("Join") is not None
    assert registry.reaction("Like") is None
    assert registry.reaction("View") is None
