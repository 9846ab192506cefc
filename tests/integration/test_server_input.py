"""What callers get for bad input, through the real server: code, field, reason, and no secret."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from google.protobuf.timestamp_pb2 import Timestamp
from servers.calls import ACTIVITY, KEY_ID, details, fan_out, refused
from servers.front import Front
from structlog.testing import capture_logs

from fedsvc.domain.integrity import with_proof
from fedsvc.domain.keys import load_private_key
from fedsvc.server import intake
from fedsvc.v1 import delivery_service_pb2 as pb
from fedsvc.v1 import key_service_pb2, operations_service_pb2, types_pb2

WEAK = rsa.generate_private_key(65537, 1024)


def encode(key: Any, form: PrivateFormat = PrivateFormat.PKCS8) -> str:
    return str(key.private_bytes(Encoding.PEM, form, NoEncryption()).decode())


def ahead(seconds: float) -> Timestamp:
    return Timestamp(seconds=int(time.time() + seconds))


ACTIVITIES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "activity"),
    "not JSON": (b"nonsense", "activity"),
    "not UTF-8": (b'{"id": "\xff"}', "activity"),
    "no object": (b"[1, 2]", "activity"),
    "2 MiB": (b'{"a": "' + b"x" * 2 * 1024 * 1024 + b'"}', "activity"),
    "10,000 deep": (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "activity"),
    "NaN": (b'{"a": NaN}', "activity"),
    "no id": (json.dumps(ACTIVITY | {"id": None}).encode(), "activity.id"),
    "relative id": (json.dumps(ACTIVITY | {"id": "/1"}).encode(), "activity.id"),
    "a number as id": (json.dumps(ACTIVITY | {"id": 1}).encode(), "activity.id"),
    "no type": (json.dumps(ACTIVITY | {"type": None}).encode(), "activity.type"),
    "an object as type": (json.dumps(ACTIVITY | {"type": {}}).encode(), "activity.type"),
    "no actor": (json.dumps(ACTIVITY | {"actor": None}).encode(), "activity.actor"),
    "a name as actor": (json.dumps(ACTIVITY | {"actor": "ada"}).encode(), "activity.actor"),
}


@pytest.mark.parametrize("name", ACTIVITIES)
async def test_a_bad_activity_is_refused(server: Front, request_of: Any, name: str) -> None:
    body, field = ACTIVITIES[name]
    await refused(server.delivery.QueueActivity(request_of(activity=body)), field, "INVALID_ACTIVITY")
    assert (
        await server.operations.GetQueueStats(operations_service_pb2.GetQueueStatsRequest())
    ).accepted == 0


@pytest.mark.parametrize(
    "inbox",
    [
        "",
        "http://a.example/inbox",
        "ftp://a.example/inbox",
        "https:///inbox",
        "https://user:pass@a.example/inbox",
        "https://a.example/inbox#fragment",
        "https://a.example/" + "x" * 8192,
        "https://2130706433/inbox",
        "https://[::1%25lo]/inbox",
        "https://a.example:99999/inbox",
        "a.example",
        "https://a b.example/",
    ],
    ids=lambda inbox: inbox[:24] or "empty",
)
async def test_a_bad_inbox_is_refused(server: Front, request_of: Any, inbox: str) -> None:
    await refused(server.delivery.QueueActivity(request_of(inbox=inbox)), "inbox", "INVALID_INBOX")


@pytest.mark.parametrize(
    ("inbox", "normal"),
    [
        ("https://BÜCHER.example/inbox", "https://xn--bcher-kva.example/inbox"),
        ("https://[2001:DB8::0:1]:443/inbox", "https://[2001:db8::1]/inbox"),
        ("https://A.Example", "https://a.example/"),
    ],
)
async def test_odd_but_good_inboxes_are_taken_in_normal_form(
    server: Front, request_of: Any, inbox: str, normal: str
) -> None:
    response = await server.delivery.QueueActivity(request_of(inbox=inbox))
    assert response.delivery.inbox == normal


@pytest.mark.parametrize("kind", ["garbage", "public", "encrypted", "short", "ec", "none"])
async def test_a_bad_key_is_refused_and_not_quoted(
    server: Front, request_of: Any, rsa_pem: str, kind: str
) -> None:
    pem = {
        "garbage": "-----BEGIN PRIVATE KEY-----\n" + "Z2FyYmFnZQ" * 10 + "\n-----END PRIVATE KEY-----\n",
        "public": load_private_key(rsa_pem).public_pem,
        "encrypted": WEAK.private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")
        ).decode(),
        "short": encode(WEAK),
        "ec": encode(ec.generate_private_key(ec.SECP256R1())),
        "none": "",
    }[kind]
    told = await refused(
        server.delivery.QueueActivity(request_of(pem=pem)), "signing_key.private_key_pem", "INVALID_KEY"
    )
    assert not [line for line in pem.splitlines() if len(line) > 20 and "-----" not in line and line in told]


async def test_a_key_in_pkcs1_is_taken(server: Front, request_of: Any) -> None:
    key = rsa.generate_private_key(65537, 2048)
    response = await server.delivery.QueueActivity(
        request_of(pem=encode(key, PrivateFormat.TraditionalOpenSSL))
    )
    assert response.delivery.delivery_id
    assert key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize("key_id", ["", "me.example", "ftp://me.example/key", 'https://me.example/"'])
async def test_a_bad_key_id_is_refused(server: Front, request_of: Any, key_id: str) -> None:
    await refused(
        server.delivery.QueueActivity(request_of(key_id=key_id)), "signing_key.key_id", "INVALID_KEY"
    )


async def test_bad_options_are_refused(server: Front, request_of: Any) -> None:
    queue = server.delivery.QueueActivity
    reason = "INVALID_ARGUMENT"
    await refused(queue(request_of(priority=99)), "options.priority", reason)
    await refused(queue(request_of(expire_time=ahead(-60))), "options.expire_time", reason)
    later = {"not_before": ahead(3600), "expire_time": ahead(60)}
    await refused(queue(request_of(**later)), "options.expire_time", reason)
    await refused(queue(request_of(not_before=ahead(400 * 86_400))), "options.not_before", reason)
    await refused(queue(request_of(not_before=Timestamp(seconds=-5))), "options.not_before", reason)
    for content_type in ("nonsense", " application/json", "application/json "):
        await refused(queue(request_of(content_type=content_type)), "options.content_type", reason)
    await refused(queue(request_of(ordering_key="x" * 513)), "options.ordering_key", reason)
    await refused(queue(request_of(request_id="x" * 129)), "request_id", reason)
    await refused(queue(request_of(request_id="a\nb")), "request_id", reason)


async def test_what_names_a_deletion_of_a_key_is_checked_as_in_other_calls(
    server: Front, rsa_pem: str
) -> None:
    await server.keys.PutKey(key_service_pb2.PutKeyRequest(key_id=KEY_ID, private_key_pem=rsa_pem))
    for name in ("x" * 129, "a\nb"):
        deletion = key_service_pb2.DeleteKeyRequest(key_id=KEY_ID, request_id=name)
        await refused(server.keys.DeleteKey(deletion), "request_id", "INVALID_ARGUMENT")
    await server.keys.GetKey(key_service_pb2.GetKeyRequest(key_id=KEY_ID))


async def test_times_that_make_sense_are_taken(server: Front, request_of: Any) -> None:
    past = await server.delivery.QueueActivity(request_of(not_before=ahead(-3600)))
    assert past.delivery.state == types_pb2.DELIVERY_STATE_READY
    later = request_of(inbox="https://b.example/", not_before=ahead(3600), expire_time=ahead(7200))
    scheduled = (await server.delivery.QueueActivity(later)).delivery
    assert scheduled.state == types_pb2.DELIVERY_STATE_SCHEDULED
    shown = await server.delivery.GetDelivery(pb.GetDeliveryRequest(delivery_id=scheduled.delivery_id))
    assert shown.delivery.state == types_pb2.DELIVERY_STATE_SCHEDULED
    assert shown.delivery.not_before.seconds == scheduled.not_before.seconds
    stats = await server.operations.GetQueueStats(operations_service_pb2.GetQueueStatsRequest())
    assert (stats.ready, stats.scheduled, stats.pending, stats.conserved) == (1, 1, 2, True)


async def test_a_bad_item_of_a_batch_takes_nothing_else_down(server: Front, request_of: Any) -> None:
    items = [
        request_of(),
        request_of(inbox="nonsense"),
        request_of(activity=b"{"),
        request_of(inbox="https://b.example/inbox"),
    ]
    response = await server.delivery.QueueActivities(pb.QueueActivitiesRequest(requests=items))
    assert [r.index for r in response.results] == [0, 1, 2, 3]
    assert [r.WhichOneof("result") for r in response.results] == ["accepted", "error", "error", "accepted"]
    assert [r.error.field for r in response.results[1:3]] == ["requests[1].inbox", "requests[2].activity"]
    assert [r.error.reason for r in response.results[1:3]] == ["INVALID_INBOX", "INVALID_ACTIVITY"]


async def test_an_empty_or_too_large_batch_is_refused(server: Front, request_of: Any) -> None:
    queue = server.delivery.QueueActivities
    await refused(queue(pb.QueueActivitiesRequest()), "requests", "INVALID_ARGUMENT")
    many = pb.QueueActivitiesRequest(requests=[request_of()] * 11)
    await refused(queue(many), "requests", "INVALID_ARGUMENT")


async def test_a_fan_out_to_nobody_or_too_many_is_refused(server: Front, request_of: Any) -> None:
    call = server.delivery.FanOutActivity
    await refused(call(fan_out(request_of(), [])), "inboxes", "INVALID_ARGUMENT")
    many = [f"https://h{n}.example/inbox" for n in range(50_001)]
    told = await refused(call(fan_out(request_of(), many)), "inboxes", "INVALID_ARGUMENT")
    assert "50001" in told
    assert "50000" in told


async def test_an_integrity_proof_needs_an_ed25519_key_of_the_same_host(
    server: Front, request_of: Any
) -> None:
    pem = encode(ed25519.Ed25519PrivateKey.generate())
    proof_key = pb.SigningKey(key_id="https://me.example/u/ada#ed25519-key", private_key_pem=pem)
    other = pb.SigningKey(key_id="https://other.example/u/ada#ed25519-key", private_key_pem=pem)
    nobodys = pb.SigningKey(key_id=proof_key.key_id)
    for options, field in (
        ({"integrity_proof": True}, "options.proof_key"),
        ({"proof_key": proof_key}, "options.proof_key"),
        ({"integrity_proof": True, "proof_key": other}, "options.proof_key.key_id"),
        ({"integrity_proof": True, "proof_key": nobodys}, "options.proof_key.private_key_pem"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await server.delivery.QueueActivity(request_of(**options))
        assert details(refused.value)[1] == [field]
    first = await server.delivery.QueueActivity(
        request_of(integrity_proof=True, proof_key=proof_key, request_id="proven")
    )
    again = await server.delivery.QueueActivity(
        request_of(integrity_proof=True, proof_key=proof_key, request_id="proven")
    )
    assert again.delivery.delivery_id == first.delivery.delivery_id, "whatever time its proof would tell"


async def test_what_is_not_there_is_not_found(server: Front) -> None:
    calls = [
        server.delivery.GetDelivery(pb.GetDeliveryRequest(delivery_id="3-77")),
        server.delivery.GetDelivery(pb.GetDeliveryRequest(delivery_id="999-77")),
        server.delivery.ListDeliveries(pb.ListDeliveriesRequest(activity_id="https://me.example/none")),
        server.operations.GetDeadLetter(operations_service_pb2.GetDeadLetterRequest(delivery_id="3-77")),
    ]
    for call in calls:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await call
        assert error.value.code() is grpc.StatusCode.NOT_FOUND
        assert details(error.value)[0].reason == "NOT_FOUND"


async def test_bad_lookups_are_refused(server: Front) -> None:
    reason = "INVALID_ARGUMENT"
    await refused(server.delivery.GetDelivery(pb.GetDeliveryRequest(delivery_id="x")), "delivery_id", reason)
    listing = server.delivery.ListDeliveries
    await refused(listing(pb.ListDeliveriesRequest()), "activity_id", reason)
    of = "https://me.example/1"
    await refused(listing(pb.ListDeliveriesRequest(activity_id=of, page_token="x")), "page_token", reason)
    unknown = types_pb2.DeliveryState.ValueType(77)
    await refused(
        listing(pb.ListDeliveriesRequest(activity_id=of, states=[types_pb2.DELIVERY_STATE_READY, unknown])),
        "states[1]",
        reason,
    )


async def test_a_key_that_is_not_the_actors_is_warned_of_once(server: Front, request_of: Any) -> None:
    foreign = {**ACTIVITY, "actor": "https://me.example/u/somebody-else"}
    with capture_logs() as logged:
        for number in range(3):
            inbox = f"https://h{number}.example/inbox"
            await server.delivery.QueueActivity(request_of(inbox=inbox))
            await server.delivery.QueueActivity(request_of(activity=foreign, inbox=inbox))
    warned = [entry for entry in logged if entry["event"] == "key_of_another_actor"]
    assert [(entry["key_id"], entry["actor"]) for entry in warned] == [(KEY_ID, foreign["actor"])]


async def test_a_proof_of_an_enormous_activity_holds_up_nobody(
    server: Front, request_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes up to a second, which the event loop does not have."""
    threads: list[bool] = []

    def proving(*arguments: Any) -> bytes:
        threads.append(threading.current_thread() is threading.main_thread())
        return with_proof(*arguments)

    monkeypatch.setattr(intake, "with_proof", proving)
    pem = encode(ed25519.Ed25519PrivateKey.generate())
    for content in ("x", "x" * 100_000):
        sent = request_of(activity=ACTIVITY | {"content": content}, pem=pem, integrity_proof=True)
        await server.delivery.QueueActivity(sent)
    assert threads == [True, False]
