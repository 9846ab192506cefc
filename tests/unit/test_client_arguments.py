"""What the client is called with wrongly is named, by either client, before anything is sent."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from fedsvc_client import (
    TLS,
    AsyncFedsvcClient,
    ConfigurationError,
    DeadLetterFilter,
    FedsvcClient,
    InvalidRequest,
    Schedule,
    ScheduledFanOut,
)
from fedsvc_client.outcomes import FileCursor, OutcomeConsumer

NIGHTLY: dict[str, Any] = {"cron": "0 3 * * *"}
#: of a call that is well
WELL: dict[str, Any] = {
    "activity": {"id": "https://me.example/1"},
    "destination": "https://a.example/inbox",
    "inboxes": ["https://a.example/inbox"],
    "items": [{"activity": {}, "destination": "https://a.example/inbox"}],
    "private_key": "pem",
    "key_id": "https://me.example/u/a#main-key",
    "activity_id": "https://me.example/1",
    "delivery_id": "1-1",
    "host": "a.example",
    "operation_id": "1",
    "schedule": Schedule(**NIGHTLY, task="CLEANUP"),
    "schedule_id": "1",
}
GOOD: dict[str, Any] = {"activity": {}, "destination": "https://a.example/inbox"}
#: what is only looked at by the client itself: anything is true or not
UNTYPED = {"heartbeats"}


class Unsent(Exception):
    """The call would be sent."""


class Client(FedsvcClient):
    def _connection(self) -> Any:
        raise Unsent


class AsyncClient(AsyncFedsvcClient):
    def _connection(self) -> Any:
        raise Unsent


def calls() -> Iterator[tuple[str, inspect.Signature]]:
    for name, method in inspect.getmembers(FedsvcClient, inspect.isfunction):
        if not name.startswith("_") and name != "close":
            yield name, inspect.signature(method)


ARGUMENTS = [
    (call, name) for call, taken in calls() for name in taken.parameters if name not in {"self", *UNTYPED}
]
NUMBERS = [
    (call, name) for call, name in ARGUMENTS if name in {"page_size", "limit", "max_in_flight", "burst"}
]


def arguments(call: str, **changes: Any) -> dict[str, Any]:
    taken = dict(calls())[call].parameters
    needed = {name: WELL[name] for name, p in taken.items() if name != "self" and p.default is p.empty}
    if "delivery_ids" in taken and not changes.keys() & {"filter", "activity_id", "host"}:
        needed["delivery_ids"] = ["1-1"]
    return needed | changes


async def make(client: Any, call: str, given: dict[str, Any]) -> None:
    made = getattr(client, call)(**given)
    if inspect.isasyncgen(made):
        await anext(made)
    elif inspect.isawaitable(made):
        await made
    else:
        next(made)


@pytest.fixture(params=[Client, AsyncClient])
def client(request: pytest.FixtureRequest) -> Any:
    return request.param("127.0.0.1:1")


@pytest.mark.parametrize("call", [call for call, _ in calls()])
async def test_a_call_that_is_well_is_sent(client: Any, call: str) -> None:
    with pytest.raises(Unsent):
        await make(client, call, arguments(call))


@pytest.mark.parametrize(("call", "name"), ARGUMENTS)
async def test_an_argument_of_a_wrong_type_is_named(client: Any, call: str, name: str) -> None:
    with pytest.raises(InvalidRequest, match=rf"\b{name}\b"):
        await make(client, call, arguments(call, **{name: object()}))


@pytest.mark.parametrize(("call", "name"), NUMBERS)
@pytest.mark.parametrize("number", [2**70, -(2**70), 1.5])
async def test_a_number_that_cannot_travel_is_named(client: Any, call: str, name: str, number: float) -> None:
    with pytest.raises(InvalidRequest, match=rf"\b{name} is "):
        await make(client, call, arguments(call, **{name: number}))


@pytest.mark.parametrize(
    ("call", "changes", "named"),
    [
        ("list_keys", {"page_size": 2**40}, "page_size is out of range"),
        ("get_delivery", {"delivery_id": None}, "delivery_id is no text but NoneType"),
        ("get_delivery", {"delivery_id": "\ud800"}, "delivery_id has half a character"),
        ("list_keys", {"origin": "\ud800"}, "origin has half a character"),
        ("get_queue_stats", {"timeout": 0}, "timeout must be a number of seconds above 0"),
        ("get_queue_stats", {"timeout": float("nan")}, "timeout must be"),
        ("get_queue_stats", {"timeout": float("inf")}, "timeout must be"),
        ("list_deliveries", {"states": ["DEAD", 5]}, r"states\[1\] is no text but int"),
        ("list_hosts", {"states": "soon"}, "states: 'soon' is not a state of hosts"),
        ("list_hosts", {"order": "soon"}, "order: 'soon' is not an order"),
        ("watch_outcomes", {"event_types": "soon"}, "event_types: 'soon' is not a type of event"),
        ("queue_activities", {"items": {"activity": {}}}, "items must be several dicts, not dict"),
        ("queue_activities", {"items": [GOOD, {}]}, r"items\[1\] has no activity"),
        (
            "queue_activities",
            {"items": [GOOD, GOOD | {5: 1, "x": 1}]},
            r"items\[1\] has 5, which is no option",
        ),
        (
            "queue_activities",
            {"items": [GOOD, GOOD | {"activity": 5}]},
            r"items\[1\].activity must be a dict",
        ),
        (
            "queue_activities",
            {"items": [GOOD, GOOD | {"private_key": b"\xff"}]},
            r"items\[1\].private_key is",
        ),
        ("queue_activities", {"items": [GOOD, GOOD | {"priority": "soon"}]}, r"items\[1\].priority: 'soon'"),
        ("queue_activities", {"items": [GOOD, GOOD | {"not_before": 5}]}, r"items\[1\].not_before must be"),
        ("queue_activities", {"items": [GOOD, GOOD | {"ordering_key": 5}]}, r"items\[1\].ordering_key is no"),
        ("queue_activity", {"activity": {"a": {1, 2}}}, "activity cannot be written as JSON: it has a set"),
        ("force_cleanup", {"aggressive": 2**70}, "aggressive is no bool"),
        ("list_dead_letters", {"filter": DeadLetterFilter(http_status=2**40)}, "http_status is out of range"),
        ("list_dead_letters", {"filter": DeadLetterFilter(reason="soon")}, "'soon' is not a reason"),
        (
            "list_audit_events",
            {"start_time": datetime.fromisoformat("2026-01-01"), "end_time": datetime.now(UTC)},
            "start_time must have a time zone",
        ),
    ],
)
async def test_what_cannot_travel_is_named(
    client: Any, call: str, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(InvalidRequest, match=named):
        await make(client, call, arguments(call, **changes))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"task": "soon"}, "task: 'SOON' is not a task"),
        ({"task": 5}, "task is no text but int"),
        ({"task": "CLEANUP", "missed_runs": "soon"}, "missed_runs: 'SOON' is not a policy"),
        ({"task": "CLEANUP", "missed_runs": None}, "missed_runs is no text"),
        ({"task": "CLEANUP", "cron": 5}, "cron is no text but int"),
        ({"task": "CLEANUP", "time_zone": 5}, "time_zone is no text but int"),
        ({"task": "CLEANUP", "task_arguments": 5}, "task_arguments is no Mapping but int"),
        ({"task": "CLEANUP", "task_arguments": {"a": object()}}, "task_arguments: "),
        ({"fan_out": 5}, "fan_out is no ScheduledFanOut but int"),
        ({"fan_out": ScheduledFanOut(b"{}", (), 5)}, "key_id is no text but int"),  # type: ignore[arg-type]
        ({"fan_out": ScheduledFanOut(5, (), "k")}, "activity must be"),  # type: ignore[arg-type]
    ],
)
async def test_what_a_schedule_cannot_have_is_named(client: Any, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidRequest, match=named):
        await make(client, "create_schedule", {"schedule": Schedule(**(NIGHTLY | changes))})


@pytest.mark.parametrize("kind", [FedsvcClient, AsyncFedsvcClient])
@pytest.mark.parametrize(
    ("how", "named"),
    [
        ({"target": 5}, "the target is no text but int"),
        ({"token": b"word"}, "the token is no text but bytes"),
        ({"timeout": "5"}, "timeout must be"),
        ({"timeout": 0}, "timeout must be"),
        ({"tls": "/etc/ssl/ca.pem"}, "tls is True, False or a TLS, not str"),
    ],
)
def test_a_client_that_cannot_be_is_refused_at_once(kind: Any, how: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        kind(**({"target": "127.0.0.1:1"} | how))


def test_a_file_of_tls_that_is_no_path_is_named() -> None:
    tls: Any = TLS(ca_file=5)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="5 cannot be read"):
        FedsvcClient("127.0.0.1:1", tls=tls).get_queue_stats()


def test_a_consumer_of_one_host_does_not_watch_those_of_its_letters(tmp_path: Any) -> None:
    client = FedsvcClient("127.0.0.1:1")
    asked: dict[str, Any] = {}

    def watch(cursor: str, **wanted: Any) -> Iterator[Any]:
        asked.update(wanted)
        consumer.stop()
        return iter([])

    client.watch_outcomes = watch  # type: ignore[assignment, method-assign]
    consumer = OutcomeConsumer(
        client, lambda event: None, FileCursor(tmp_path / "cursor"), hosts="a.example", states="DEAD"
    )
    consumer.run()
    assert (asked["hosts"], asked["states"]) == (["a.example"], ["DEAD"])
