"""What travels is what was asked for and told: each argument of a call, each field of an answer."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fedsvc_client import (
    AsyncFedsvcClient,
    BatchItem,
    Cancelled,
    Delivery,
    DeliveryPage,
    DeliveryState,
    EventType,
    FanOut,
    FedsvcClient,
    ItemError,
    KeyPage,
    OutcomeEvent,
    Priority,
    QueuedActivity,
    RegisteredKey,
    RejectedInbox,
    _wire,
)
from fedsvc_client._proto import delivery_service_pb2 as pb
from fedsvc_client._proto import key_service_pb2 as key_pb2
from fedsvc_client._proto import operations_service_pb2 as operations_pb
from fedsvc_client._proto import types_pb2
from fedsvc_client._types import Attempt
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp


def at(second: int) -> datetime:
    return datetime.fromtimestamp(second, UTC)


TOLD = types_pb2.Delivery(
    delivery_id="3-7", activity_id="a", activity_type="Like", actor="ada", inbox="inbox", host="host",
    origin="origin", key_id="key", state=types_pb2.DELIVERY_STATE_DEAD, priority=types_pb2.PRIORITY_BULK,
    attempts=2, reason=types_pb2.REASON_UNAUTHORIZED, http_status=401, response_snippet="who?",
    accept_time=Timestamp(seconds=1), not_before=Timestamp(seconds=2), next_attempt_time=Timestamp(seconds=3),
    expire_time=Timestamp(seconds=4), complete_time=Timestamp(seconds=5), ordering_key="order",
    request_id="request",
    attempt_history=[
        types_pb2.Attempt(time=Timestamp(seconds=6), latency=Duration(nanos=7000), http_status=503,
                          reason=types_pb2.REASON_TIMEOUT),
    ],
)  # fmt: skip
READ = Delivery(
    delivery_id="3-7", activity_id="a", activity_type="Like", actor="ada", inbox="inbox", host="host",
    origin="origin", key_id="key", state=DeliveryState.DEAD, priority=Priority.BULK,
    attempts=2, reason="UNAUTHORIZED", http_status=401, response_snippet="who?",
    accept_time=at(1), not_before=at(2), next_attempt_time=at(3), expire_time=at(4), complete_time=at(5),
    attempt_history=(Attempt(at(6), timedelta(microseconds=7), 503, "TIMEOUT"),),
    ordering_key="order", request_id="request",
)  # fmt: skip
WRONG = types_pb2.ItemError(code=3, reason="BAD", message="is bad", field="inbox")
KEY = key_pb2.Key(
    key_id="key", origin="origin", algorithm=key_pb2.KEY_ALGORITHM_RSA, bits=2048, fingerprint="f",
    public_key_pem="pem", create_time=Timestamp(seconds=1), deletion_pending=True,
)  # fmt: skip
KEPT = RegisteredKey("key", "origin", "RSA", 2048, "f", "pem", at(1), True)


@pytest.mark.parametrize(
    ("read", "told", "expected"),
    [
        (_wire.delivery, TOLD, READ),
        (
            _wire.queued,
            pb.QueueActivityResponse(delivery=TOLD, duplicate=True),
            QueuedActivity("3-7", True, READ),
        ),
        (
            _wire.batch,
            pb.QueueActivitiesResponse(
                results=[
                    pb.QueueActivityResult(index=1, error=WRONG),
                    pb.QueueActivityResult(index=2, accepted=pb.QueueActivityResponse(delivery=TOLD)),
                ]
            ),
            [
                BatchItem(1, None, ItemError("BAD", "is bad", "inbox")),
                BatchItem(2, QueuedActivity("3-7", False, READ), None),
            ],
        ),
        (
            _wire.fan_out,
            pb.FanOutActivityResponse(
                activity_id="a",
                accepted=1,
                duplicates=2,
                rejected=[pb.RejectedInbox(index=3, inbox="x", error=WRONG)],
            ),
            FanOut("a", 1, 2, [RejectedInbox(3, "x", ItemError("BAD", "is bad", "inbox"))]),
        ),
        (
            _wire.delivery_page,
            pb.ListDeliveriesResponse(
                deliveries=[TOLD],
                next_page_token="next",
                summary=[pb.StateCount(state=types_pb2.DELIVERY_STATE_PARKED, count=8)],
            ),
            DeliveryPage((READ,), "next", {DeliveryState.PARKED: 8}),
        ),
        (
            _wire.cancelled,
            pb.CancelDeliveriesResponse(cancelled=1, in_flight=2, ended=3),
            Cancelled(1, 2, 3),
        ),
        (
            _wire.event,
            pb.WatchOutcomesResponse(
                cursor="c",
                event_type=pb.EVENT_TYPE_OUTCOME,
                time=Timestamp(seconds=9),
                delivery=TOLD,
                host="host",
                inbox="inbox",
                key_id="key",
            ),
            OutcomeEvent("c", EventType.OUTCOME, at(9), READ, "host", "inbox", "key"),
        ),
        (
            _wire.event,
            pb.WatchOutcomesResponse(cursor="c", heartbeat=True),
            OutcomeEvent("c", EventType.HEARTBEAT),
        ),
        (_wire.key_page, key_pb2.ListKeysResponse(keys=[KEY], next_page_token="n"), KeyPage((KEPT,), "n")),
    ],
)
def test_all_that_a_server_tells_is_read(read: Callable[[Any], Any], told: Message, expected: Any) -> None:
    assert read(told) == expected


def test_what_a_newer_server_tells_is_read_as_far_as_it_is_known() -> None:
    newer = types_pb2.Delivery(state=99, priority=99, reason=99)  # type: ignore[arg-type]
    found = _wire.delivery(newer)
    assert (found.state, found.priority) == (DeliveryState.UNSPECIFIED, Priority.UNSPECIFIED)
    assert (found.reason, found.accept_time, found.attempt_history) == ("99", None, ())
    event = _wire.event(pb.WatchOutcomesResponse(event_type=99))  # type: ignore[arg-type]
    assert (event.type, event.time, event.delivery) == (EventType.UNSPECIFIED, None, None)
    assert _wire.delivery(types_pb2.Delivery()).reason == ""


SERVICES = {
    "delivery": pb.DESCRIPTOR.services_by_name["DeliveryService"],
    "operations": operations_pb.DESCRIPTOR.services_by_name["OperationsService"],
    "keys": key_pb2.DESCRIPTOR.services_by_name["KeyService"],
}


class Stream:
    """What a server sends, for either client."""

    def __init__(self, messages: list[Message]) -> None:
        self.messages = messages
        self.cancelled = False

    def __iter__(self) -> Iterator[Message]:
        yield from self.messages

    async def __aiter__(self) -> AsyncIterator[Message]:
        for message in self.messages:
            yield message

    def cancel(self) -> None:
        self.cancelled = True


class Recorder:
    """Stands in for a connection, and keeps what is sent."""

    def __init__(self, *, awaited: bool) -> None:
        self.awaited = awaited
        self.sent: list[tuple[str, Any, float]] = []
        self.metadata: list[dict[str, str]] = []
        self.streams: list[Stream] = []

    def __getattr__(self, service: str) -> Any:
        recorder, there_are = self, SERVICES[service].methods_by_name

        class Service:
            def __getattr__(self, method: str) -> Any:
                assert method in there_are
                return lambda request, timeout=None, *, metadata: recorder.take(
                    method, request, timeout, metadata
                )

        return Service()

    def take(self, method: str, request: Message, timeout: Any, metadata: Any) -> Any:
        self.sent.append((method, request, timeout))
        self.metadata.append(dict(metadata))
        if method.startswith("Watch"):
            self.streams.append(Stream([pb.WatchOutcomesResponse(cursor="c", heartbeat=True)]))
            return self.streams[-1]
        name = f"{method}Response"
        told = next(
            getattr(module, name)() for module in (pb, key_pb2, operations_pb) if hasattr(module, name)
        )

        async def later() -> Any:
            return told

        return later() if self.awaited else told


OPTIONS: dict[str, Any] = {
    "priority": "urgent",
    "not_before": at(1),
    "expire_time": at(2),
    "ordering_key": "order",
    "supersede_key": "supersede",
    "content_type": "text/plain",
    "allow_duplicate": True,
    "shared_inbox": True,
    "integrity_proof": True,
    "proof_key": "proof pem",
    "proof_key_id": "proof",
}
KEYS: dict[str, Any] = {"private_key": b"pem", "key_id": "key"}
SENT_OPTIONS = pb.DeliveryOptions(
    priority=types_pb2.PRIORITY_URGENT,
    not_before=Timestamp(seconds=1),
    expire_time=Timestamp(seconds=2),
    ordering_key="order",
    supersede_key="supersede",
    content_type="text/plain",
    allow_duplicate=True,
    shared_inbox=True,
    integrity_proof=True,
    proof_key=pb.SigningKey(private_key_pem="proof pem", key_id="proof"),
)
NO_OPTIONS = pb.DeliveryOptions()
SENT_KEY = pb.SigningKey(private_key_pem="pem", key_id="key")


@pytest.mark.parametrize("kind", [FedsvcClient, AsyncFedsvcClient])
@pytest.mark.parametrize(
    ("call", "arguments", "expected"),
    [
        (
            "queue_activity",
            {"activity": b"{}", "destination": "inbox", "request_id": "r", **KEYS, **OPTIONS},
            pb.QueueActivityRequest(
                activity=b"{}", inbox="inbox", signing_key=SENT_KEY, options=SENT_OPTIONS, request_id="r"
            ),
        ),
        (
            "queue_activity",
            {"activity": "{ }", "destination": "inbox", "request_id": "r", "key_id": "key"},
            pb.QueueActivityRequest(
                activity=b"{ }", inbox="inbox", signing_key=pb.SigningKey(key_id="key"), options=NO_OPTIONS,
                request_id="r",
            ),
        ),
        (
            "queue_activities",
            {
                "items": [
                    {"activity": {"a": 1}, "destination": "one", "request_id": "1", **OPTIONS},
                    {"activity": b"{}", "destination": "two", "key_id": "own", "private_key": None},
                ],
                "request_id": "r",
                **KEYS,
            },
            pb.QueueActivitiesRequest(
                requests=[
                    pb.QueueActivityRequest(
                        activity=b'{"a":1}', inbox="one", signing_key=SENT_KEY, options=SENT_OPTIONS,
                        request_id="1",
                    ),
                    pb.QueueActivityRequest(
                        activity=b"{}", inbox="two", signing_key=pb.SigningKey(key_id="own"),
                        options=NO_OPTIONS,
                    ),
                ],
                request_id="r",
            ),
        ),
        (
            "fan_out",
            {"activity": b"{}", "inboxes": ("one", "two"), "request_id": "r", **KEYS, **OPTIONS},
            pb.FanOutActivityRequest(
                activity=b"{}", inboxes=["one", "two"], signing_key=SENT_KEY, options=SENT_OPTIONS,
                request_id="r",
            ),
        ),
        (
            "fan_out",
            {"activity": b"{}", "inboxes": ["one"], "request_id": "r", "key_id": "key"},
            pb.FanOutActivityRequest(
                activity=b"{}", inboxes=["one"], signing_key=pb.SigningKey(key_id="key"),
                options=NO_OPTIONS, request_id="r",
            ),
        ),
        ("get_delivery", {"delivery_id": "3-7"}, pb.GetDeliveryRequest(delivery_id="3-7")),
        (
            "list_deliveries",
            {"activity_id": "a", "states": ["dead"], "page_size": -1, "page_token": "next"},
            pb.ListDeliveriesRequest(
                activity_id="a", states=[types_pb2.DELIVERY_STATE_DEAD], page_size=-1, page_token="next"
            ),
        ),
        ("list_deliveries", {"activity_id": "a"}, pb.ListDeliveriesRequest(activity_id="a")),
        ("notify_host_seen", {"host": "h"}, operations_pb.NotifyHostSeenRequest(host="h")),
        (
            "put_key",
            {"key_id": "key", "private_key": b"pem", "request_id": "r"},
            key_pb2.PutKeyRequest(key_id="key", private_key_pem="pem", request_id="r"),
        ),
        (
            "rotate_key",
            {"key_id": "key", "private_key": "pem", "request_id": "r"},
            key_pb2.RotateKeyRequest(key_id="key", private_key_pem="pem", request_id="r"),
        ),
        ("get_key", {"key_id": "key"}, key_pb2.GetKeyRequest(key_id="key")),
        (
            "list_keys",
            {"origin": "o", "page_size": 5, "page_token": "next"},
            key_pb2.ListKeysRequest(origin="o", page_size=5, page_token="next"),
        ),
        ("list_keys", {}, key_pb2.ListKeysRequest()),
        (
            "delete_key",
            {"key_id": "key", "when_unused": True, "request_id": "r"},
            key_pb2.DeleteKeyRequest(key_id="key", when_unused=True, request_id="r"),
        ),
        (
            "delete_key",
            {"key_id": "key", "request_id": "r"},
            key_pb2.DeleteKeyRequest(key_id="key", request_id="r"),
        ),
    ],
)  # fmt: skip
async def test_all_that_a_call_is_given_is_sent(
    kind: Any, call: str, arguments: dict[str, Any], expected: Message
) -> None:
    client, recorder = kind("127.0.0.1:1"), Recorder(awaited=kind is AsyncFedsvcClient)
    client._connection = lambda: recorder
    made = getattr(client, call)(**arguments, timeout=0.5)
    if inspect.isawaitable(made):
        await made
    ((_, request, timeout),) = recorder.sent
    assert request == expected
    assert 0 < timeout <= 0.5


@pytest.mark.parametrize("kind", [FedsvcClient, AsyncFedsvcClient])
@pytest.mark.parametrize(
    ("chosen", "sent"),
    [
        ({"delivery_ids": ("1-1", "1-2")}, {"deliveries": {"delivery_ids": ["1-1", "1-2"]}}),
        ({"activity_id": "a"}, {"activity_id": "a"}),
        ({"host": "h"}, {"host": "h"}),
        ({"ordering_key": "o"}, {"ordering_key": "o"}),
        ({"supersede_key": "s"}, {"supersede_key": "s"}),
    ],
)
async def test_what_is_cancelled_is_what_was_chosen(
    kind: Any, chosen: dict[str, Any], sent: dict[str, Any]
) -> None:
    client, recorder = kind("127.0.0.1:1"), Recorder(awaited=kind is AsyncFedsvcClient)
    client._connection = lambda: recorder
    made = client.cancel_deliveries(**chosen)
    if inspect.isawaitable(made):
        await made
    ((_, request, _),) = recorder.sent
    assert request.request_id
    assert request == pb.CancelDeliveriesRequest(request_id=request.request_id, **sent)


@pytest.mark.parametrize("kind", [FedsvcClient, AsyncFedsvcClient])
async def test_the_token_goes_with_calls_and_with_streams(kind: Any) -> None:
    client, recorder = kind("127.0.0.1:1", "word"), Recorder(awaited=kind is AsyncFedsvcClient)
    client._connection = lambda: recorder
    made, watched = client.get_delivery("1-1"), client.watch_outcomes(heartbeats=True)
    if inspect.isawaitable(made):
        await made
        await anext(watched)
        await watched.aclose()
    else:
        next(watched)
        watched.close()
    assert recorder.metadata == [{"authorization": "Bearer word"}] * 2
    assert [method for method, _, _ in recorder.sent] == ["GetDelivery", "WatchOutcomes"]
    assert recorder.streams[0].cancelled, "whoever goes lets the server know"
