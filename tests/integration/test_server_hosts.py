"""Hosts, cancelling, cleaning up and backpressure, over gRPC."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from fedsvc_client import AsyncFedsvcClient, HostState
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from servers.front import Front, front
from servers.valkey import ValkeyServer

from fedsvc.config import Settings
from fedsvc.v1 import delivery_service_pb2 as pb
from fedsvc.v1 import operations_service_pb2 as operations
from fedsvc.v1 import types_pb2

HOST = "remote.example"


def request_of(
    rsa_pem: str, number: int = 1, *, priority: types_pb2.Priority.ValueType = types_pb2.PRIORITY_BULK
) -> pb.QueueActivityRequest:
    activity = (
        f'{{"id":"https://me.example/{number}","type":"Like","actor":"https://me.example/u/a",'
        f'"object":"https://{HOST}/1"}}'
    )
    return pb.QueueActivityRequest(
        activity=activity.encode(),
        inbox=f"https://{HOST}/inbox",
        signing_key=pb.SigningKey(key_id="https://me.example/u/a#main-key", private_key_pem=rsa_pem),
        options=pb.DeliveryOptions(priority=priority, ordering_key=f"key{number}"),
    )


def detail(error: grpc.aio.AioRpcError, kind: type) -> object:
    packed = dict(error.trailing_metadata() or ())["grpc-status-details-bin"]
    status = status_pb2.Status.FromString(packed)
    for item in status.details:
        found = kind()
        if item.Unpack(found):
            return found
    raise AssertionError(f"no {kind} in {status}")


async def test_a_host_is_paused_with_a_reason_and_resumed(server: Front) -> None:
    paused = await server.operations.PauseHost(
        operations.PauseHostRequest(host="Remote.Example", reason="they asked", duration=Duration(seconds=60))
    )
    assert (paused.host.host, paused.host.state) == (HOST, operations.HOST_STATE_PAUSED)
    assert paused.host.pause_reason == "they asked"
    assert paused.host.HasField("pause_end_time")
    for_ever = await server.operations.PauseHost(operations.PauseHostRequest(host=HOST))
    assert not for_ever.host.HasField("pause_end_time")
    resumed = await server.operations.ResumeHost(operations.ResumeHostRequest(host=HOST))
    assert (resumed.host.state, resumed.host.pause_reason) == (operations.HOST_STATE_CLOSED, "")


async def test_a_pause_beyond_the_years_that_there_are_is_for_ever_and_hosts_are_listed(
    server: Front,
) -> None:
    async with AsyncFedsvcClient(server.target, timeout=5) as client:
        paused = await client.pause_host(HOST, duration=3e11)
        assert (paused.state, paused.pause_end_time) == (HostState.PAUSED, None)
        assert (await client.list_hosts()).hosts == (paused,)
        almost = await client.pause_host(HOST, duration=2.5e11)  # some 7,900 years
        assert almost.pause_end_time is not None


async def test_a_policy_is_kept_shown_and_taken_back(server: Front) -> None:
    policy = operations.HostPolicy(max_in_flight=2, rate_per_second=0.5, burst=3)
    await server.operations.UpdateHostPolicy(operations.UpdateHostPolicyRequest(host=HOST, policy=policy))
    shown = await server.operations.GetHost(operations.GetHostRequest(host=HOST))
    assert shown.host.policy == policy
    await server.operations.UpdateHostPolicy(operations.UpdateHostPolicyRequest(host=HOST))
    shown = await server.operations.GetHost(operations.GetHostRequest(host=HOST))
    assert shown.host.policy == operations.HostPolicy()


async def test_a_host_that_is_well_is_not_probed(server: Front) -> None:
    answer = await server.operations.NotifyHostSeen(operations.NotifyHostSeenRequest(host=HOST))
    assert not answer.probing


@pytest.mark.parametrize(
    ("method", "request_", "field"),
    [
        ("PauseHost", operations.PauseHostRequest(), "host"),
        ("PauseHost", operations.PauseHostRequest(host="https://remote.example/"), "host"),
        ("PauseHost", operations.PauseHostRequest(host="a b"), "host"),
        ("PauseHost", operations.PauseHostRequest(host=HOST, reason="x" * 513), "reason"),
        ("PauseHost", operations.PauseHostRequest(host=HOST, duration=Duration(seconds=-1)), "duration"),
        ("GetHost", operations.GetHostRequest(host="remote.example:443"), "host"),
        (
            "UpdateHostPolicy",
            operations.UpdateHostPolicyRequest(host=HOST, policy=operations.HostPolicy(max_in_flight=-1)),
            "policy.max_in_flight",
        ),
        (
            "UpdateHostPolicy",
            operations.UpdateHostPolicyRequest(
                host=HOST, policy=operations.HostPolicy(rate_per_second=float("nan"))
            ),
            "policy.rate_per_second",
        ),
    ],
)
async def test_bad_input_is_refused_with_the_field(
    server: Front, method: str, request_: object, field: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await getattr(server.operations, method)(request_)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    bad = detail(caught.value, error_details_pb2.BadRequest)
    assert isinstance(bad, error_details_pb2.BadRequest)
    assert [v.field for v in bad.field_violations] == [field]


@pytest.mark.parametrize("selector", ["deliveries", "activity_id", "host", "ordering_key"])
async def test_what_was_not_sent_is_cancelled(server: Front, rsa_pem: str, selector: str) -> None:
    queued = (await server.delivery.QueueActivity(request_of(rsa_pem))).delivery
    request = pb.CancelDeliveriesRequest()
    match selector:
        case "deliveries":
            request.deliveries.delivery_ids.append(queued.delivery_id)
        case "activity_id":
            request.activity_id = queued.activity_id
        case "host":
            request.host = HOST
        case _:
            request.ordering_key = "key1"
    answer = await server.delivery.CancelDeliveries(request)
    assert (answer.cancelled, answer.in_flight, answer.ended) == (1, 0, 0)
    answer = await server.delivery.CancelDeliveries(request)
    assert (answer.cancelled, answer.ended) == (0, 1)
    shown = await server.delivery.GetDelivery(pb.GetDeliveryRequest(delivery_id=queued.delivery_id))
    assert shown.delivery.state == types_pb2.DELIVERY_STATE_CANCELLED
    assert shown.delivery.activity_id == queued.activity_id
    stats = await server.operations.GetQueueStats(operations.GetQueueStatsRequest())
    assert (stats.cancelled, stats.pending, stats.conserved) == (1, 0, True)


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.CancelDeliveriesRequest(), "selector"),
        (pb.CancelDeliveriesRequest(deliveries=pb.DeliveryIds()), "deliveries.delivery_ids"),
        (
            pb.CancelDeliveriesRequest(deliveries=pb.DeliveryIds(delivery_ids=["1-1", "x"])),
            "deliveries.delivery_ids[1]",
        ),
        (pb.CancelDeliveriesRequest(activity_id=""), "activity_id"),
        (pb.CancelDeliveriesRequest(host="a/b"), "host"),
    ],
)
async def test_a_bad_selector_is_refused(
    server: Front, request_: pb.CancelDeliveriesRequest, field: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await server.delivery.CancelDeliveries(request_)
    bad = detail(caught.value, error_details_pb2.BadRequest)
    assert isinstance(bad, error_details_pb2.BadRequest)
    assert [v.field for v in bad.field_violations] == [field]


async def test_cleaning_up_says_what_it_freed(server: Front) -> None:
    answer = await server.operations.ForceCleanup(operations.ForceCleanupRequest(aggressive=True))
    assert {c.name: c.entries for c in answer.freed} == {"outcomes": 0, "dead_letters": 0, "hosts": 0}


async def test_a_full_redis_refuses_bulk_first_and_says_when_to_come_back(
    tmp_path: Path, environment: dict[str, str], rsa_pem: str
) -> None:
    own = ValkeyServer(tmp_path, extra=("--maxmemory-policy", "noeviction"))
    own.start()
    settings = Settings.from_environment(environment | {"REDIS_URL": own.url})
    codes = {}
    try:
        with own.client() as redis:
            # beside which a connection weighs nothing; made by the server: no buffer is left
            redis.setrange("filler", 200_000_000, b"x")
            for percent in (50, 91, 96, 99):
                used = redis.info("memory")["used_memory"]
                # the server looks at it when it starts
                redis.config_set("maxmemory", int(used * 100 / percent))
                async with front(settings) as server:
                    for name in ("BULK", "NORMAL", "URGENT"):
                        priority = types_pb2.Priority.Value(f"PRIORITY_{name}")
                        request = request_of(rsa_pem, percent * 10 + priority, priority=priority)
                        try:
                            await server.delivery.QueueActivity(request)
                            codes[percent, name] = "OK"
                        except grpc.aio.AioRpcError as error:
                            codes[percent, name] = error.code().name
                            retry = detail(error, error_details_pb2.RetryInfo)
                            assert isinstance(retry, error_details_pb2.RetryInfo)
                            assert retry.retry_delay.seconds > 0
    finally:
        own.close()
    full = "RESOURCE_EXHAUSTED"
    assert codes == {
        (50, "BULK"): "OK", (50, "NORMAL"): "OK", (50, "URGENT"): "OK",
        (91, "BULK"): full, (91, "NORMAL"): "OK", (91, "URGENT"): "OK",
        (96, "BULK"): full, (96, "NORMAL"): full, (96, "URGENT"): "OK",
        (99, "BULK"): full, (99, "NORMAL"): full, (99, "URGENT"): full,
    }  # fmt: skip
