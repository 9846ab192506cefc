"""Who may do what, through the real server: tokens, scopes, origins, limits, and doors that stay shut."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from fedsvc_client import (
    AsyncFedsvcClient,
    FedsvcClient,
    InvalidRequest,
    PermissionDenied,
    ResourceExhausted,
)
from google.protobuf import empty_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client import REGISTRY
from servers.front import Front, front
from structlog.testing import capture_logs

from fedsvc.config import Settings
from fedsvc.errors import ConfigurationError
from fedsvc.server.app import SERVICES
from fedsvc.server.auth import EVERYWHERE, rights
from fedsvc.server.caller import Caller, Scope
from fedsvc.server.tokens import entry_text, new_token
from fedsvc.v1 import delivery_service_pb2 as pb
from fedsvc.v1 import key_service_pb2 as keys_pb
from fedsvc.v1 import operations_service_pb2 as operations_pb

DELIVER, OPERATE, KEYS = Scope.DELIVER, Scope.OPERATE, Scope.KEYS
CALLERS = {
    "piefed": Caller("piefed", frozenset({DELIVER, KEYS}), frozenset({"me.example"})),
    "other": Caller("other", frozenset({DELIVER, KEYS}), frozenset({"other.example", "second.example"})),
    "local-operator": Caller("local-operator", frozenset({OPERATE}), frozenset({"me.example"})),
    "admin": Caller("admin", frozenset(Scope), None),
}
TOKENS = {name: new_token() for name in CALLERS}
ME = "https://me.example/u/ada#main-key"
OTHER = "https://other.example/u/bob#main-key"
#: their stubs have no types
REFLECTION: Any = reflection_pb2_grpc
ASK: Any = reflection_pb2

Start = Callable[..., Any]


def activity(origin: str = "me.example", number: int = 1) -> dict[str, Any]:
    actor = f"https://{origin}/u/ada"
    return {
        "id": f"https://{origin}/a/{number}",
        "type": "Like",
        "actor": actor,
        "object": "https://third.example/1",
    }


@pytest.fixture
def start(environment: dict[str, str]) -> Start:
    """A server, with these settings beside the ones that it needs."""

    def with_settings(*, reflect: bool = True, **more: str) -> Any:
        settings = environment | {
            "FEDSVC_TOKENS": ",".join(entry_text(CALLERS[name], token) for name, token in TOKENS.items()),
            **{f"FEDSVC_{name.upper()}": value for name, value in more.items()},
        }
        return front(Settings.from_environment(settings), reflect=reflect)

    return with_settings


@pytest.fixture
async def server(start: Start) -> AsyncIterator[Front]:
    async with start() as running:
        yield running


def shown(name: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {TOKENS[name]}"),)


def requests() -> list[str]:
    """Every method there is that answers once."""
    found = []
    for service in SERVICES:
        name = service.rpartition(".")[2]
        files = [module.DESCRIPTOR for module in (pb, operations_pb, keys_pb)]
        (described,) = [file.services_by_name[name] for file in files if name in file.services_by_name]
        for method in described.methods:
            found.append(f"/{service}/{method.name}")
    return found


async def code_of(channel: grpc.aio.Channel, method: str, metadata: Any) -> grpc.StatusCode:
    """What an empty request is answered with; streams are read to their first word."""
    stream = method.rpartition("/")[2].startswith("Watch")
    make = channel.unary_stream if stream else channel.unary_unary
    call: Any = make(method, request_serializer=empty_pb2.Empty.SerializeToString)(
        empty_pb2.Empty(), metadata=metadata, timeout=20
    )
    try:
        if not stream:
            await call
        elif await call.read() is grpc.aio.EOF:
            return grpc.StatusCode(await call.code())
        call.cancel()
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


REFUSED = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}


@pytest.mark.parametrize("method", requests())
async def test_every_method_is_open_to_its_scopes_and_to_nobody_else(server: Front, method: str) -> None:
    assert await code_of(server.channel, method, None) is grpc.StatusCode.UNAUTHENTICATED
    for name, known in CALLERS.items():
        code = await code_of(server.channel, method, shown(name))
        allowed = bool(rights(method) & known.scopes)
        if method in EVERYWHERE and known.origins is not None:
            allowed = False
        assert (code not in REFUSED) == allowed, (name, code)
        if not allowed:
            assert code is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        (("authorization", ""),),
        (("authorization", "Bearer"),),
        (("authorization", "Bearer "),),
        (("authorization", TOKENS["admin"]),),
        (("authorization", f"Basic {TOKENS['admin']}"),),
        (("authorization", f"Bearer {TOKENS['admin'][:-1]}"),),
        (("authorization", f"Bearer {TOKENS['admin']}x"),),
        (("authorization", f"Bearer {TOKENS['admin']}"), ("authorization", f"Bearer {TOKENS['piefed']}")),
        (("x-authorization", f"Bearer {TOKENS['admin']}"),),
    ],
)
async def test_what_is_not_one_known_token_is_refused(server: Front, metadata: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await server.operations.GetQueueStats(operations_pb.GetQueueStatsRequest(), metadata=metadata)
    assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert TOKENS["admin"] not in str(error.value.details())
    trailers = dict(tuple(pair) for pair in error.value.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain) == ("UNAUTHENTICATED", "fedsvc")


async def test_health_needs_no_token_and_reflection_does(server: Front) -> None:
    health: Any = health_pb2_grpc.HealthStub(server.channel)
    answer = await health.Check(health_pb2.HealthCheckRequest(service=""))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    reflection = REFLECTION.ServerReflectionStub(server.channel)
    ask = ASK.ServerReflectionRequest(list_services="")
    # Nothing is sent: a client that writes just as its call ends may blame itself.
    assert await reflection.ServerReflectionInfo().code() is grpc.StatusCode.UNAUTHENTICATED
    answered = await anext(aiter(reflection.ServerReflectionInfo(iter([ask]), metadata=shown("piefed"))))
    assert {service.name for service in answered.list_services_response.service} >= set(SERVICES)


async def test_reflection_can_be_off(start: Start) -> None:
    async with start(reflect=False) as server:
        reflection = REFLECTION.ServerReflectionStub(server.channel)
        call = reflection.ServerReflectionInfo(metadata=shown("admin"))
        assert await call.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_an_instance_never_sends_as_another(server: Front, rsa_pem: str) -> None:
    async with (
        AsyncFedsvcClient(server.target, TOKENS["piefed"]) as piefed,
        AsyncFedsvcClient(server.target, TOKENS["other"]) as other,
        AsyncFedsvcClient(server.target, TOKENS["admin"]) as admin,
    ):
        inbox = "https://third.example/inbox"
        with pytest.raises(PermissionDenied, match=r"piefed may not sign for other\.example"):
            await piefed.queue_activity(activity(), inbox, private_key=rsa_pem, key_id=OTHER)
        with pytest.raises(PermissionDenied, match=r"other\.example"):
            await piefed.fan_out(activity(), [inbox], private_key=rsa_pem, key_id=OTHER)
        with pytest.raises(PermissionDenied, match=r"other\.example"):
            await piefed.put_key(OTHER, rsa_pem)
        await other.put_key(OTHER, rsa_pem)
        for call in (
            piefed.get_key(OTHER),
            piefed.rotate_key(OTHER, rsa_pem),
            piefed.delete_key(OTHER),
            piefed.queue_activity(activity(), inbox, key_id=OTHER),
            piefed.get_key("https://third.example/u/x#k"),
        ):
            with pytest.raises(PermissionDenied, match="piefed may not sign for"):
                await call
        with pytest.raises(InvalidRequest, match="another host than"):
            await piefed.queue_activity(
                activity(), inbox, key_id=ME, private_key=rsa_pem,
                integrity_proof=True, proof_key_id=OTHER, proof_key=rsa_pem,
            )  # fmt: skip
        mine = await piefed.queue_activity(activity(), inbox, private_key=rsa_pem, key_id=ME)
        assert mine.delivery.delivery_id
        await admin.queue_activity(activity("other.example"), inbox, private_key=rsa_pem, key_id=OTHER)
        stats = await admin.get_queue_stats()
        assert stats.accepted == 2


async def test_who_is_refused_is_counted_and_named_whatever_strangers_do(server: Front, rsa_pem: str) -> None:
    codes = ("UNAUTHENTICATED", "PERMISSION_DENIED")
    wanted = [refused(codes[0]) + 2, refused(codes[1]) + 4]
    async with (
        AsyncFedsvcClient(server.target, "none that is known") as stranger,
        AsyncFedsvcClient(server.target, TOKENS["piefed"]) as piefed,
        AsyncFedsvcClient(server.target, TOKENS["other"]) as other,
    ):
        with capture_logs() as logs:
            for call in (
                stranger.get_queue_stats(),
                stranger.get_queue_stats(),
                other.list_hosts(),
                other.list_hosts(),
                piefed.queue_activity(
                    activity(), "https://third.example/inbox", private_key=rsa_pem, key_id=OTHER
                ),
                piefed.put_key(OTHER, rsa_pem),
            ):
                with pytest.raises(PermissionDenied):
                    await call
            async with asyncio.timeout(20):  # a caller has its answer before it is counted
                while [refused(code) for code in codes] != wanted:
                    await asyncio.sleep(0.01)
    lines = [(line["caller"], line["code"]) for line in logs if line["event"] == "caller_refused"]
    assert lines == [("", codes[0]), ("other", codes[1]), ("piefed", codes[1])]


def refused(code: str) -> float:
    return REGISTRY.get_sample_value("fedsvc_refused_calls_total", {"code": code}) or 0.0


async def test_one_bad_apple_of_many_is_told_and_the_others_are_taken(server: Front, rsa_pem: str) -> None:
    def request(origin: str, key_id: str) -> pb.QueueActivityRequest:
        return pb.QueueActivityRequest(
            activity=json.dumps(activity(origin)).encode(),
            inbox="https://third.example/inbox",
            signing_key=pb.SigningKey(key_id=key_id, private_key_pem=rsa_pem),
        )

    answer = await server.delivery.QueueActivities(
        pb.QueueActivitiesRequest(requests=[request("me.example", ME), request("other.example", OTHER)]),
        metadata=shown("piefed"),
    )
    first, second = answer.results
    assert first.accepted.delivery.delivery_id
    assert (second.error.code, second.error.reason) == (7, "PERMISSION_DENIED")
    assert second.error.field.startswith("requests[1]")


async def test_registered_keys_are_listed_by_those_who_may_use_them(server: Front, rsa_pem: str) -> None:
    async with (
        AsyncFedsvcClient(server.target, TOKENS["piefed"]) as piefed,
        AsyncFedsvcClient(server.target, TOKENS["other"]) as other,
        AsyncFedsvcClient(server.target, TOKENS["admin"]) as admin,
    ):
        made = [f"https://{o}/u/{n}#k" for o in ("other.example", "second.example") for n in range(3)]
        for key_id in made:
            await other.put_key(key_id, rsa_pem)
        await piefed.put_key(ME, rsa_pem)
        assert [key.key_id for key in (await piefed.list_keys()).keys] == [ME]
        assert (await piefed.list_keys(origin="other.example")).keys == ()
        assert {key.key_id for key in (await admin.list_keys()).keys} == {ME, *made}
        seen: list[str] = []
        token = ""
        while True:
            page = await other.list_keys(page_size=2, page_token=token)
            assert len(page.keys) <= 2
            seen += [key.key_id for key in page.keys]
            token = page.next_page_token
            if not token:
                break
        assert seen == made
        page = await other.list_keys(origin="second.example", page_size=2)
        assert [key.key_id for key in page.keys] == made[3:5]
        with pytest.raises(InvalidRequest, match="page_token"):
            await other.list_keys(origin="other.example", page_token=page.next_page_token)


async def test_a_caller_that_calls_too_often_is_told_when_to_come_back(start: Start, rsa_pem: str) -> None:
    limits = "piefed:calls=0.01 other:fan_out=2:bytes=400 @second.example:rate=0.001"
    async with start(limits=limits) as server:
        ask = operations_pb.GetQueueStatsRequest()
        await server.operations.GetQueueStats(ask, metadata=shown("piefed"))
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await server.operations.GetQueueStats(ask, metadata=shown("piefed"))
        assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        trailers = dict(tuple(pair) for pair in error.value.trailing_metadata() or ())
        status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
        info, again = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        assert [d.Unpack(info) or d.Unpack(again) for d in status.details] == [True, True]
        assert info.reason == "RATE_LIMITED"
        assert 50 < again.retry_delay.seconds <= 100
        await server.operations.GetQueueStats(ask, metadata=shown("admin"))

        async with AsyncFedsvcClient(server.target, TOKENS["other"], timeout=5) as other:
            inboxes = [f"https://h{n}.example/inbox" for n in range(3)]
            sent = activity("other.example")
            with pytest.raises(InvalidRequest, match="inboxes"):
                await other.fan_out(sent, inboxes, private_key=rsa_pem, key_id=OTHER)
            done = await other.fan_out(sent, inboxes[:2], private_key=rsa_pem, key_id=OTHER)
            assert done.accepted == 2
            long = {**sent, "summary": "x" * 400}
            with pytest.raises(InvalidRequest, match="400 are allowed"):
                await other.queue_activity(long, inboxes[0], private_key=rsa_pem, key_id=OTHER)
            second = "https://second.example/u/eve#k"
            await other.queue_activity(
                activity("second.example"), inboxes[0], private_key=rsa_pem, key_id=second
            )
            with pytest.raises(ResourceExhausted, match=r"second\.example") as exhausted:
                await other.queue_activity(
                    activity("second.example", 2), inboxes[0], private_key=rsa_pem, key_id=second
                )
            assert exhausted.value.retry_after


async def test_an_activity_with_its_proof_is_within_the_limits_of_its_caller_and_origin(
    start: Start,
) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    limits = "piefed:bytes=4000 other:bytes=600 @second.example:bytes=500"
    async with start(max_activity_bytes="1024", limits=limits) as server:

        async def prove(name: str, origin: str, size: int) -> None:
            """An activity of so many bytes, without its proof of some 400."""
            sent = activity(origin) | {"summary": ""}
            sent["summary"] = "x" * (size - len(json.dumps(sent, separators=(",", ":"))))
            key_id = f"https://{origin}/u/ada#main-key"
            async with AsyncFedsvcClient(server.target, TOKENS[name], timeout=5) as client:
                await client.queue_activity(
                    sent, "https://a.example/inbox", private_key=pem, key_id=key_id, integrity_proof=True
                )

        await prove("piefed", "me.example", 2000)
        with pytest.raises(InvalidRequest, match="bytes with its proof; 600 are allowed"):
            await prove("other", "other.example", 500)
        with pytest.raises(InvalidRequest, match=r"bytes; 500 are allowed for second\.example"):
            await prove("admin", "second.example", 400)


async def test_the_blocking_client_shows_its_token_too(server: Front) -> None:
    def ask(token: str | None) -> int:
        with FedsvcClient(server.target, token, timeout=5) as client:
            return client.get_queue_stats().accepted

    assert await asyncio.to_thread(ask, TOKENS["piefed"]) == 0
    for wrong in (None, "fedsvc_wrong"):
        with pytest.raises(PermissionDenied, match="token"):
            await asyncio.to_thread(ask, wrong)


@pytest.mark.parametrize(
    ("settings", "missing"),
    [
        ({"listen": "0.0.0.0:0", "tokens": ""}, "FEDSVC_TOKENS and FEDSVC_TLS_CERT and FEDSVC_TLS_KEY"),
        ({"listen": "0.0.0.0:0"}, "FEDSVC_TLS_CERT and FEDSVC_TLS_KEY"),
        ({"listen": "[::]:0"}, "FEDSVC_TLS_CERT"),
        ({"listen": "192.0.2.1:0"}, "FEDSVC_TLS_CERT"),
    ],
)
async def test_a_door_that_strangers_reach_is_not_opened_unguarded(
    start: Start, settings: dict[str, str], missing: str
) -> None:
    with pytest.raises(ConfigurationError, match="FEDSVC_LISTEN") as error:
        async with start(**settings):
            pass
    assert missing in str(error.value)
    assert "--insecure" in str(error.value)


@pytest.mark.parametrize("now", [None, Caller("piefed", frozenset({DELIVER}), frozenset({"other.example"}))])
async def test_a_stream_ends_with_the_token_that_it_was_opened_with(
    environment: dict[str, str], tmp_path: Path, now: Caller | None
) -> None:
    file = tmp_path / "tokens"

    def write(entries: dict[str, Caller]) -> None:
        file.write_text("\n".join(entry_text(caller, TOKENS[name]) for name, caller in entries.items()))

    write(CALLERS)
    metadata = (("authorization", f"Bearer {TOKENS['piefed']}"),)
    async with front(Settings.from_environment(environment | {"FEDSVC_TOKENS_FILE": str(file)})) as running:
        request = operations_pb.WatchQueueStatsRequest()
        request.interval.FromMilliseconds(200)
        call = running.operations.WatchQueueStats(request, metadata=metadata)
        responses = aiter(call)
        assert (await anext(responses)).stats.conserved
        write(
            {name: caller for name, caller in CALLERS.items() if name != "piefed"}
            | ({"piefed": now} if now else {})
        )
        code = grpc.StatusCode.UNAVAILABLE if now else grpc.StatusCode.UNAUTHENTICATED

        async def read_on() -> None:
            async for _ in responses:
                pass

        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await asyncio.wait_for(read_on(), 15)
        assert ended.value.code() is code
