"""Between what users see and what travels: requests are built, responses are read. No I/O."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any, Optional, Union

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from fedsvc_client._arguments import build, choices, new_request_id, optional_text, several, whole_text
from fedsvc_client._exceptions import InvalidRequest
from fedsvc_client._proto import delivery_service_pb2 as delivery_pb2
from fedsvc_client._proto import key_service_pb2 as key_pb2
from fedsvc_client._proto import types_pb2
from fedsvc_client._types import (
    Attempt,
    BatchItem,
    Cancelled,
    Delivery,
    DeliveryPage,
    DeliveryState,
    EventType,
    FanOut,
    ItemError,
    KeyPage,
    OutcomeEvent,
    Priority,
    QueuedActivity,
    RegisteredKey,
    RejectedInbox,
)

Activity = Union[Mapping[str, Any], bytes, str]
When = Optional[datetime]


def activity_bytes(activity: Activity) -> bytes:
    """Bytes and text travel as they are: they are what is signed. A dict becomes compact JSON in UTF-8."""
    if isinstance(activity, bytes):
        return activity
    if isinstance(activity, str):
        return whole_text("activity", activity).encode()
    if not isinstance(activity, Mapping):
        raise InvalidRequest(f"activity must be a dict, bytes or str, not {type(activity).__name__}")
    try:
        return json.dumps(
            activity, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_as_dict
        ).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"activity cannot be written as JSON: {error}") from None


def _as_dict(value: Any) -> dict[Any, Any]:
    """Of a mapping that `json` does not know as one."""
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"it has a {type(value).__name__}")


def pem(private_key: str | bytes | None, name: str = "private_key") -> str:
    try:
        return optional_text(name, private_key.decode() if isinstance(private_key, bytes) else private_key)
    except UnicodeDecodeError:
        raise InvalidRequest(f"{name} is not in PEM", reason="INVALID_KEY") from None


def signing_key(
    private_key: str | bytes | None, key_id: str, names: tuple[str, str] = ("private_key", "key_id")
) -> delivery_pb2.SigningKey:
    """`names`: what the caller calls the two."""
    return delivery_pb2.SigningKey(
        private_key_pem=pem(private_key, names[0]), key_id=optional_text(names[1], key_id)
    )


def registered_key(m: key_pb2.Key) -> RegisteredKey:
    return RegisteredKey(
        key_id=m.key_id,
        origin=m.origin,
        algorithm=name_of(key_pb2.KeyAlgorithm, m.algorithm, "KEY_ALGORITHM_"),
        bits=m.bits,
        fingerprint=m.fingerprint,
        public_key_pem=m.public_key_pem,
        create_time=time_of(m, "create_time"),
        deletion_pending=m.deletion_pending,
    )


def key_page(m: key_pb2.ListKeysResponse) -> KeyPage:
    return KeyPage(tuple(registered_key(key) for key in m.keys), m.next_page_token)


def options(
    priority: Priority | str | None,
    not_before: When,
    expire_time: When,
    ordering_key: str,
    supersede_key: str,
    content_type: str,
    allow_duplicate: bool,
    shared_inbox: bool,
    integrity_proof: bool,
    proof_key: str | bytes | None,
    proof_key_id: str,
) -> delivery_pb2.DeliveryOptions:
    return build(
        delivery_pb2.DeliveryOptions,
        priority=priority_named(priority),
        not_before=timestamp_of("not_before", not_before),
        expire_time=timestamp_of("expire_time", expire_time),
        ordering_key=optional_text("ordering_key", ordering_key),
        supersede_key=optional_text("supersede_key", supersede_key),
        content_type=optional_text("content_type", content_type),
        allow_duplicate=allow_duplicate,
        shared_inbox=shared_inbox,
        integrity_proof=integrity_proof,
        proof_key=signing_key(proof_key, proof_key_id, ("proof_key", "proof_key_id"))
        if proof_key or proof_key_id
        else None,
    )


def watch_request(
    cursor: str,
    event_types: Iterable[EventType | str],
    wanted: Iterable[DeliveryState | str],
    activity_types: Iterable[str],
    hosts: Iterable[str],
) -> delivery_pb2.WatchOutcomesRequest:
    types = choices("event_types", event_types, delivery_pb2.EventType, "EVENT_TYPE_", "a type of event")
    return build(
        delivery_pb2.WatchOutcomesRequest,
        cursor=cursor,
        event_types=types,
        states=states(wanted),
        activity_types=several("activity_types", activity_types),
        hosts=several("hosts", hosts),
    )


def event(message: delivery_pb2.WatchOutcomesResponse) -> OutcomeEvent:
    if message.heartbeat:
        return OutcomeEvent(message.cursor, EventType.HEARTBEAT)
    name = name_of(delivery_pb2.EventType, message.event_type, "EVENT_TYPE_")
    return OutcomeEvent(
        cursor=message.cursor,
        type=EventType(name) if name in EventType.__members__ else EventType.UNSPECIFIED,
        time=time_of(message, "time"),
        delivery=delivery(message.delivery) if message.HasField("delivery") else None,
        host=message.host,
        inbox=message.inbox,
        key_id=message.key_id,
    )


def priority_named(priority: Priority | str | None) -> types_pb2.Priority.ValueType:
    if priority is None:
        return types_pb2.PRIORITY_UNSPECIFIED
    try:
        return types_pb2.Priority.Value(f"PRIORITY_{str(priority).upper()}")
    except ValueError:
        raise InvalidRequest(f"priority: {priority!r} is not urgent, normal or bulk") from None


def timestamp_of(name: str, when: When) -> Timestamp | None:
    if when is None:
        return None
    if not isinstance(when, datetime):
        raise InvalidRequest(f"{name} must be a datetime, not {type(when).__name__}")
    if when.tzinfo is None:
        raise InvalidRequest(f"{name} must have a time zone")
    stamp = Timestamp()
    try:
        stamp.FromDatetime(when.astimezone(timezone.utc))
    except OverflowError:
        raise InvalidRequest(f"{name} is not in the years that UTC has") from None
    return stamp


def time_of(message: Any, field: str) -> datetime | None:
    if not message.HasField(field):
        return None
    stamp: Timestamp = getattr(message, field)
    return stamp.ToDatetime(tzinfo=timezone.utc)


def duration_of(duration: Duration) -> timedelta:
    return duration.ToTimedelta()


def name_of(enum: Any, number: int, prefix: str) -> str:
    """Of an enum's value; a value of a newer server is told by its number."""
    try:
        return str(enum.Name(number)).removeprefix(prefix)
    except ValueError:
        return str(number)


def _state(number: int) -> DeliveryState:
    name = name_of(types_pb2.DeliveryState, number, "DELIVERY_STATE_")
    return DeliveryState(name) if name in DeliveryState.__members__ else DeliveryState.UNSPECIFIED


def priority_of(number: int) -> Priority:
    name = name_of(types_pb2.Priority, number, "PRIORITY_")
    return Priority(name) if name in Priority.__members__ else Priority.UNSPECIFIED


def reason_of(number: int) -> str:
    return name_of(types_pb2.Reason, number, "REASON_") if number else ""


def delivery(m: types_pb2.Delivery) -> Delivery:
    return Delivery(
        delivery_id=m.delivery_id,
        state=_state(m.state),
        activity_id=m.activity_id,
        activity_type=m.activity_type,
        actor=m.actor,
        inbox=m.inbox,
        host=m.host,
        origin=m.origin,
        key_id=m.key_id,
        priority=priority_of(m.priority),
        attempts=m.attempts,
        reason=reason_of(m.reason),
        http_status=m.http_status,
        response_snippet=m.response_snippet,
        accept_time=time_of(m, "accept_time"),
        not_before=time_of(m, "not_before"),
        next_attempt_time=time_of(m, "next_attempt_time"),
        expire_time=time_of(m, "expire_time"),
        complete_time=time_of(m, "complete_time"),
        attempt_history=tuple(
            Attempt(time_of(a, "time"), duration_of(a.latency), a.http_status, reason_of(a.reason))
            for a in m.attempt_history
        ),
        ordering_key=m.ordering_key,
        request_id=m.request_id,
    )


def queued(m: delivery_pb2.QueueActivityResponse) -> QueuedActivity:
    return QueuedActivity(m.delivery.delivery_id, m.duplicate, delivery(m.delivery))


def item_error(m: types_pb2.ItemError) -> ItemError:
    return ItemError(m.reason, m.message, m.field)


def batch(m: delivery_pb2.QueueActivitiesResponse) -> list[BatchItem]:
    return [
        BatchItem(r.index, None, item_error(r.error))
        if r.WhichOneof("result") == "error"
        else BatchItem(r.index, queued(r.accepted), None)
        for r in m.results
    ]


def fan_out(m: delivery_pb2.FanOutActivityResponse) -> FanOut:
    rejected = [RejectedInbox(r.index, r.inbox, item_error(r.error)) for r in m.rejected]
    return FanOut(m.activity_id, m.accepted, m.duplicates, rejected)


def cancel_request(
    delivery_ids: Iterable[str], activity_id: str, host: str, ordering_key: str, supersede_key: str
) -> delivery_pb2.CancelDeliveriesRequest:
    """Raises InvalidRequest unless exactly one selector is given."""
    ids = several("delivery_ids", delivery_ids)
    given: dict[str, Any] = {
        name: value
        for name, value in (
            ("activity_id", activity_id),
            ("host", host),
            ("ordering_key", ordering_key),
            ("supersede_key", supersede_key),
        )
        if value
    }
    if len(given) + bool(ids) != 1:
        raise InvalidRequest("give one of delivery_ids, activity_id, host, ordering_key, supersede_key")
    request = build(delivery_pb2.CancelDeliveriesRequest, request_id=new_request_id(), **given)
    if ids:
        request.deliveries.delivery_ids.extend(ids)
    return request


def cancelled(m: delivery_pb2.CancelDeliveriesResponse) -> Cancelled:
    return Cancelled(m.cancelled, m.in_flight, m.ended)


def delivery_page(m: delivery_pb2.ListDeliveriesResponse) -> DeliveryPage:
    return DeliveryPage(
        tuple(delivery(d) for d in m.deliveries),
        m.next_page_token,
        {_state(c.state): c.count for c in m.summary},
    )


def states(wanted: Iterable[DeliveryState | str]) -> list[types_pb2.DeliveryState.ValueType]:
    return choices("states", wanted, types_pb2.DeliveryState, "DELIVERY_STATE_", "a state")


def batch_items(
    items: Sequence[Mapping[str, Any]], private_key: str | bytes | None, key_id: str
) -> list[delivery_pb2.QueueActivityRequest]:
    """`items` have `activity` and `destination`, and may have what `queue_activity` takes beside them."""
    if isinstance(items, Mapping) or not isinstance(items, Iterable):
        raise InvalidRequest(f"items must be several dicts, not {type(items).__name__}")
    requests = []
    for index, item in enumerate(items):
        if not isinstance(item, Mapping):
            raise InvalidRequest(f"items[{index}] is {type(item).__name__}, not a dict")
        for name in ("activity", "destination"):
            if name not in item:
                raise InvalidRequest(f"items[{index}] has no {name}")
        if unknown := [name for name in item if name not in _OF_AN_ITEM]:
            raise InvalidRequest(f"items[{index}] has {unknown[0]}, which is no option")
        try:
            requests.append(_batch_item({"private_key": private_key, "key_id": key_id, **item}))
        except InvalidRequest as error:
            raise InvalidRequest(f"items[{index}].{error}", reason=error.reason) from None
    return requests


def _batch_item(item: Mapping[str, Any]) -> delivery_pb2.QueueActivityRequest:
    return delivery_pb2.QueueActivityRequest(
        activity=activity_bytes(item["activity"]),
        inbox=whole_text("destination", item["destination"]),
        signing_key=signing_key(item["private_key"], item["key_id"]),
        options=options(**{name: item.get(name, default) for name, default in _NO_OPTIONS.items()}),
        request_id=optional_text("request_id", item.get("request_id")),
    )


_NO_OPTIONS: dict[str, Any] = {
    "priority": None,
    "not_before": None,
    "expire_time": None,
    "ordering_key": "",
    "supersede_key": "",
    "content_type": "",
    "allow_duplicate": False,
    "shared_inbox": False,
    "integrity_proof": False,
    "proof_key": None,
    "proof_key_id": "",
}
_OF_AN_ITEM = frozenset({"activity", "destination", "private_key", "key_id", "request_id", *_NO_OPTIONS})
