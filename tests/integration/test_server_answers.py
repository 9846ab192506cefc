"""What callers get for good calls, through the real server: the first answer again, pages, figures."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from servers.calls import ACTIVITY, KEY_ID, details, fan_out, queue_request, refused
from servers.front import Front
from servers.queue import Queue, one_partition_away

from fedsvc.server.app import SERVICES
from fedsvc.v1 import delivery_service_pb2 as pb
from fedsvc.v1 import key_service_pb2 as keys_pb
from fedsvc.v1 import operations_service_pb2, types_pb2


async def test_a_fan_out_takes_what_is_good_and_tells_the_rest_by_index(
    server: Front, request_of: Any
) -> None:
    inboxes = [
        "https://a.example/i",
        "nonsense",
        "https://A.example/i",
        "https://b.example/i",
        "ftp://c.example/",
    ]
    response = await server.delivery.FanOutActivity(fan_out(request_of(), inboxes))
    assert (response.accepted, response.duplicates, response.activity_id) == (2, 1, ACTIVITY["id"])
    assert [(r.index, r.inbox, r.error.field) for r in response.rejected] == [
        (1, "nonsense", "inboxes[1]"),
        (4, "ftp://c.example/", "inboxes[4]"),
    ]


def ed25519_pem() -> str:
    key = ed25519.Ed25519PrivateKey.generate()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


async def answers(server: Front, request: Any, fan: Any, batch: Any) -> list[Any]:
    """To a call of each kind."""
    return [
        await server.delivery.QueueActivity(request),
        await server.delivery.FanOutActivity(fan),
        await server.delivery.QueueActivities(batch),
    ]


async def test_a_call_that_is_repeated_under_its_name_gets_the_first_answer(
    server: Front, request_of: Any
) -> None:
    request = request_of(request_id="single")
    first = await server.delivery.QueueActivity(request)
    assert await server.delivery.QueueActivity(request) == first
    inboxes = [f"https://h{n}.example/inbox" for n in range(3000)]
    fan = fan_out(request_of(activity=ACTIVITY | {"id": "https://me.example/2"}), inboxes, "fan")
    first_fan = await server.delivery.FanOutActivity(fan)
    assert first_fan.accepted == 3000
    assert await server.delivery.FanOutActivity(fan) == first_fan
    items = [request_of(activity=ACTIVITY | {"id": f"https://me.example/b{n}"}) for n in range(3)]
    batch = pb.QueueActivitiesRequest(requests=items, request_id="batch")
    assert await server.delivery.QueueActivities(batch) == await server.delivery.QueueActivities(batch)
    stats = await server.operations.GetQueueStats(operations_service_pb2.GetQueueStatsRequest())
    assert (stats.accepted, stats.conserved) == (3004, True)


async def test_a_call_that_is_repeated_after_its_expiry_gets_the_first_answer(
    server: Front, request_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expires = {"expire_time": Timestamp(seconds=int(time.time()) + 600)}
    request = request_of(request_id="single", **expires)
    named, unnamed = (
        request_of(activity=ACTIVITY | {"id": f"https://me.example/{n}"}, **expires) for n in "23"
    )
    inboxes = [f"https://h{n}.example/inbox" for n in range(20)]
    fan = fan_out(named, inboxes, "fan")
    batch = pb.QueueActivitiesRequest(requests=[unnamed], request_id="batch")
    first = await answers(server, request, fan, batch)
    monkeypatch.setattr("fedsvc.server.intake.time", SimpleNamespace(time=lambda: time.time() + 3600))
    assert await answers(server, request, fan, batch) == first
    for name in ("", "another", "fan"):
        request.request_id = name
        await refused(server.delivery.QueueActivity(request), "options.expire_time", "INVALID_ARGUMENT")
    fan.request_id = "single"
    await refused(server.delivery.FanOutActivity(fan), "options.expire_time", "INVALID_ARGUMENT")
    stats = await server.operations.GetQueueStats(operations_service_pb2.GetQueueStatsRequest())
    assert (stats.accepted, stats.conserved) == (22, True)


async def test_a_fan_out_that_broke_half_way_is_finished_after_its_expiry(
    server: Front, queue: Queue, request_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = request_of(expire_time=Timestamp(seconds=int(time.time()) + 600))
    fan = fan_out(request, [f"https://h{n}.example/inbox" for n in range(20)], "fan")
    first = await server.delivery.FanOutActivity(fan)
    (lost, *_) = await queue.link.call("KEYS", f"{queue.settings.namespace}:*:request:*")
    await queue.link.call("DEL", lost)
    monkeypatch.setattr("fedsvc.server.intake.time", SimpleNamespace(time=lambda: time.time() + 3600))
    again = await server.delivery.FanOutActivity(fan)
    assert again.accepted + again.duplicates == first.accepted == 20


async def test_a_call_that_is_repeated_after_its_key_was_deleted_gets_the_first_answer(
    server: Front, request_of: Any, rsa_pem: str
) -> None:
    await server.keys.PutKey(keys_pb.PutKeyRequest(key_id=KEY_ID, private_key_pem=rsa_pem))
    request = request_of(pem="", request_id="single")
    named, unnamed = (request_of(pem="", activity=ACTIVITY | {"id": f"https://me.example/{n}"}) for n in "23")
    inboxes = [f"https://h{n}.example/inbox" for n in range(20)]
    fan = fan_out(named, inboxes, "fan")
    batch = pb.QueueActivitiesRequest(requests=[unnamed], request_id="batch")
    first = await answers(server, request, fan, batch)
    proof_key = pb.SigningKey(key_id=f"{KEY_ID}-2", private_key_pem=ed25519_pem())
    proof = {"integrity_proof": True, "proof_key": proof_key}
    proven = request_of(pem="", request_id="proven", inbox="https://p.example/inbox", **proof)
    first_proven = await server.delivery.QueueActivity(proven)
    deleted = await server.keys.DeleteKey(keys_pb.DeleteKeyRequest(key_id=KEY_ID, when_unused=True))
    assert deleted.deferred
    assert await answers(server, request, fan, batch) == first
    assert await server.delivery.QueueActivity(proven) == first_proven
    proven.options.proof_key.private_key_pem = ""
    await refused(server.delivery.QueueActivity(proven), "options.proof_key.private_key_pem", "INVALID_KEY")
    for name in ("", "another", "fan"):
        request.request_id = name
        await refused(server.delivery.QueueActivity(request), "signing_key.private_key_pem", "INVALID_KEY")
    fan.request_id = "single"
    await refused(server.delivery.FanOutActivity(fan), "signing_key.private_key_pem", "INVALID_KEY")
    stats = await server.operations.GetQueueStats(operations_service_pb2.GetQueueStatsRequest())
    assert (stats.accepted, stats.conserved) == (23, True)


async def test_a_fan_out_that_broke_half_way_is_finished_with_its_key_while_that_is_there(
    server: Front, queue: Queue, request_of: Any, rsa_pem: str
) -> None:
    await server.keys.PutKey(keys_pb.PutKeyRequest(key_id=KEY_ID, private_key_pem=rsa_pem))
    fans = [
        fan_out(
            request_of(pem="", activity=ACTIVITY | {"id": f"https://me.example/{name}"}),
            [f"https://h{n}.example/inbox" for n in range(20)],
            name,
        )
        for name in ("finished", "refused")
    ]
    for fan in fans:
        with one_partition_away(), pytest.raises(grpc.aio.AioRpcError, match="away"):
            await server.delivery.FanOutActivity(fan)
    await server.keys.DeleteKey(keys_pb.DeleteKeyRequest(key_id=KEY_ID, when_unused=True))
    first, second = fans
    other = fan_out(request_of(pem=""), list(first.inboxes), "finished")
    with pytest.raises(grpc.aio.AioRpcError, match="request_id was used for a call with other content"):
        await server.delivery.FanOutActivity(other)
    finished = await server.delivery.FanOutActivity(first)
    assert (finished.accepted, finished.duplicates) == (20, 0)
    # Nothing needs it any more, and it goes.
    for activity in (first, second):
        sent = pb.CancelDeliveriesRequest(activity_id=json.loads(activity.activity)["id"])
        await server.delivery.CancelDeliveries(sent)
    await server.keys.DeleteKey(keys_pb.DeleteKeyRequest(key_id=KEY_ID))
    await refused(server.delivery.FanOutActivity(second), "signing_key.private_key_pem", "INVALID_KEY")
    stats = await server.operations.GetQueueStats(operations_service_pb2.GetQueueStatsRequest())
    assert 20 < stats.accepted < 40, "nothing of the other call, and no more of the second"


async def test_the_key_of_a_call_outlives_what_it_is_scheduled_for(
    server: Front, queue: Queue, request_of: Any
) -> None:
    days = 86_400
    for n, ask in enumerate((300, 330)):
        activity = ACTIVITY | {"id": f"https://me.example/later{n}"}
        request = request_of(activity=activity, not_before=Timestamp(seconds=int(time.time()) + ask * days))
        if n:
            await server.delivery.FanOutActivity(fan_out(request, ["https://a.example/i"]))
        else:
            await server.delivery.QueueActivity(request)
        (key,) = await queue.link.call("KEYS", f"{queue.settings.namespace}:key:*")
        assert await queue.link.call("TTL", key) > ask * days + queue.settings.max_retry_duration


async def test_what_concerns_the_same_thing_is_accepted_in_the_order_of_the_batch(
    server: Front, request_of: Any
) -> None:
    await server.delivery.QueueActivity(request_of())  # this key is known, others take a while to be checked
    unknown = rsa.generate_private_key(65537, 2048)
    pem = unknown.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    note = {"id": "https://me.example/note", "type": "Note", "attributedTo": ACTIVITY["actor"]}
    create = ACTIVITY | {"id": "https://me.example/create", "type": "Create", "object": note}
    delete = ACTIVITY | {"id": "https://me.example/delete", "type": "Delete", "object": note["id"]}
    items = [request_of(activity=create, pem=pem), request_of(activity=delete)]
    for number in range(8):
        like = ACTIVITY | {"id": f"https://me.example/like{number}"}
        item = request_of(activity=like, ordering_key="k", **({} if number % 2 else {"pem": pem}))
        items.append(item)
    answer = await server.delivery.QueueActivities(pb.QueueActivitiesRequest(requests=items))
    first, _, *likes = [result.accepted.delivery.delivery_id for result in answer.results]
    shown = await server.delivery.GetDelivery(pb.GetDeliveryRequest(delivery_id=first))
    assert shown.delivery.state == types_pb2.DELIVERY_STATE_SUPERSEDED
    assert likes == sorted(likes)


async def test_the_name_of_a_batch_is_checked_and_told(server: Front, request_of: Any) -> None:
    for bad in ("x" * 129, "a\nb", "\0"):
        batch = pb.QueueActivitiesRequest(requests=[request_of()], request_id=bad)
        await refused(server.delivery.QueueActivities(batch), "request_id", "INVALID_ARGUMENT")
    batch = pb.QueueActivitiesRequest(requests=[request_of()], request_id="x" * 128)
    (result,) = (await server.delivery.QueueActivities(batch)).results
    assert result.accepted.delivery.request_id == "x" * 128 + "#0"
    asked = pb.GetDeliveryRequest(delivery_id=result.accepted.delivery.delivery_id)
    assert (await server.delivery.GetDelivery(asked)).delivery.request_id == "x" * 128 + "#0"


async def test_a_name_that_belongs_to_another_call_is_refused(server: Front, request_of: Any) -> None:
    await server.delivery.QueueActivity(request_of(request_id="name"))
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await server.delivery.QueueActivity(
            request_of(request_id="name", activity=ACTIVITY | {"id": "https://me.example/other"})
        )
    assert error.value.code() is grpc.StatusCode.ALREADY_EXISTS
    assert details(error.value)[0].reason == "REQUEST_ID_REUSED"


_TERMS: dict[str, dict[str, Any]] = {
    "priority": {"priority": types_pb2.PRIORITY_BULK},
    "not_before": {"not_before": Timestamp(seconds=4)},
    "expire_time": {"expire_time": Timestamp(seconds=9_999_999_999)},
    "ordering_key": {"ordering_key": "o"},
    "supersede_key": {"supersede_key": "s"},
    "content_type": {"content_type": "application/ld+json"},
    "allow_duplicate": {"allow_duplicate": True},
    "shared_inbox": {"shared_inbox": True},
    "integrity_proof": {"integrity_proof": True},
    "proof_key": {"integrity_proof": True, "proof_key": pb.SigningKey(key_id=f"{KEY_ID}-2")},
}


@pytest.mark.parametrize("term", [field.name for field in pb.DeliveryOptions.DESCRIPTOR.fields])
async def test_a_name_that_belongs_to_a_call_on_other_terms_is_refused(server: Front, term: str) -> None:
    pem = ed25519_pem()
    terms = _TERMS[term]
    if "proof_key" in terms:
        terms["proof_key"].private_key_pem = pem
    former = {"integrity_proof": True} if term == "proof_key" else {}
    for name, one, other in (("r", former, terms), ("s", terms, former)):
        first = await server.delivery.QueueActivity(queue_request(pem=pem, request_id=name, **one))
        again = server.delivery.QueueActivity(queue_request(pem=pem, request_id=name, **other))
        if term == "shared_inbox":  # it says nothing of what is sent, nor when
            assert (await again).delivery.delivery_id == first.delivery.delivery_id
            continue
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await again
        assert details(error.value)[0].reason == "REQUEST_ID_REUSED"


async def test_recipients_are_listed_in_stable_pages(server: Front, request_of: Any) -> None:
    inboxes = [f"https://h{n}.example/inbox" for n in range(25)]
    await server.delivery.FanOutActivity(fan_out(request_of(), inboxes))
    found: list[str] = []
    token, pages = "", 0
    while True:
        page = await server.delivery.ListDeliveries(
            pb.ListDeliveriesRequest(activity_id=ACTIVITY["id"], page_size=10, page_token=token)
        )
        pages += 1
        found += [d.inbox for d in page.deliveries]
        assert bool(page.summary) is (pages == 1)
        token = page.next_page_token
        if not token:
            break
    assert (pages, sorted(found)) == (3, sorted(inboxes))
    only = await server.delivery.ListDeliveries(
        pb.ListDeliveriesRequest(activity_id=ACTIVITY["id"], page_size=-1)
    )
    assert [(c.state, c.count) for c in only.summary] == [(types_pb2.DELIVERY_STATE_READY, 25)]
    assert not only.deliveries


async def test_figures_are_told_by_priority(server: Front, request_of: Any) -> None:
    for number, (kind, inboxes) in enumerate((("Like", 1), ("Create", 2), ("Announce", 3))):
        activity = ACTIVITY | {"id": f"https://me.example/{number}", "type": kind}
        urls = [f"https://h{n}.example/inbox" for n in range(inboxes)]
        await server.delivery.FanOutActivity(fan_out(request_of(activity=activity), urls))
    stats = await server.operations.GetQueueStats(operations_service_pb2.GetQueueStatsRequest())
    assert [(p.priority, p.ready, p.in_flight) for p in stats.priorities] == [(1, 1, 0), (2, 2, 0), (3, 3, 0)]
    assert (stats.accepted, stats.pending, stats.conserved) == (6, 6, True)
    assert (stats.partitions, stats.consumers, stats.redis.version != "") == (16, 0, True)
    assert stats.rates[0].accepted_per_second == pytest.approx(6 / 60)
    memory = await server.operations.GetMemoryStatus(operations_service_pb2.GetMemoryStatusRequest())
    assert memory.used_bytes > 0
    assert memory.eviction_policy == "noeviction"
    retries = await server.operations.GetRetryStats(operations_service_pb2.GetRetryStatsRequest())
    assert (retries.retry, retries.due, len(retries.histogram)) == (0, 0, 8)


async def test_health_is_told_overall_and_by_service(server: Front) -> None:
    health: Any = health_pb2_grpc.HealthStub(server.channel)
    for name in ("", *SERVICES):
        answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_reflection_lists_the_services(server: Front) -> None:
    stubs: Any = reflection_pb2_grpc
    stub = stubs.ServerReflectionStub(server.channel)
    messages: Any = reflection_pb2
    asked = iter([messages.ServerReflectionRequest(list_services="")])
    (answer,) = [answer async for answer in stub.ServerReflectionInfo(asked)]
    assert set(SERVICES) <= {service.name for service in answer.list_services_response.service}


async def test_a_fan_out_to_10000_is_told_in_a_few_numbers(server: Front, rsa_pem: str) -> None:
    signed = pb.SigningKey(key_id=KEY_ID, private_key_pem=rsa_pem)
    request = pb.FanOutActivityRequest(
        activity=json.dumps(ACTIVITY).encode(),
        inboxes=[f"https://h{number}.example/inbox" for number in range(10_000)],
        signing_key=signed,
    )
    assert (await server.delivery.FanOutActivity(request)).accepted == 10_000
    asked = pb.ListDeliveriesRequest(activity_id=ACTIVITY["id"], page_size=-1)
    told = await server.delivery.ListDeliveries(asked)
    assert {c.state: c.count for c in told.summary} == {types_pb2.DELIVERY_STATE_READY: 10_000}
    assert told.ByteSize() < 50, "and no more than that"
    for number in range(40):
        cancelled = pb.CancelDeliveriesRequest(host=f"h{number}.example")
        assert (await server.delivery.CancelDeliveries(cancelled)).cancelled == 1
    told = await server.delivery.ListDeliveries(asked)
    ended = {types_pb2.DELIVERY_STATE_READY: 9960, types_pb2.DELIVERY_STATE_CANCELLED: 40}
    assert {c.state: c.count for c in told.summary} == ended
