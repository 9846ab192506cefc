"""What the client itself can tell is wrong is refused by name, before anything is sent."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from fedsvc_client import (
    TLS,
    AsyncFedsvcClient,
    Configuration,
    ConfigurationError,
    DeliveryState,
    FedsvcClient,
    InvalidRequest,
)
from servers.certificates import authority
from servers.failing import ACTIVITY, CALL, Failing, served

from fedsvc.v1 import delivery_service_pb2 as pb
from fedsvc.v1 import types_pb2


@pytest.mark.parametrize(
    "how",
    [{"priority": "soon"}, {"activity": {"x": float("nan")}}, {"activity": 5}],
    ids=lambda how: next(iter(how)),
)
async def test_what_the_client_itself_can_tell_is_refused_without_a_call(how: dict[str, Any]) -> None:
    servicer = Failing()
    async with served(servicer) as target, AsyncFedsvcClient(target) as client:
        with pytest.raises(InvalidRequest):
            await client.queue_activity(
                how.get("activity", ACTIVITY), "https://a.example/inbox", **CALL, priority=how.get("priority")
            )
    assert not servicer.requests


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"ca_file": "/nonexistent"}, "/nonexistent cannot be read"),
        ({"ca_file": "/dev/null"}, "/dev/null holds nothing in PEM"),
        ({"cert_file": __file__, "key_file": __file__}, "holds nothing in PEM"),
        ({"cert_file": __file__}, "belong together"),
        ({"key_file": __file__}, "belong together"),
    ],
)
async def test_files_of_tls_that_cannot_be_used_are_named(files: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        await AsyncFedsvcClient("127.0.0.1:1", timeout=1, tls=TLS(**files)).get_queue_stats()
    with pytest.raises(ConfigurationError, match=words):
        FedsvcClient("127.0.0.1:1", timeout=1, tls=TLS(**files)).get_queue_stats()


def test_a_certificate_whose_key_cannot_be_used_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    issuer = authority()
    cert, other = issuer.certify("me"), issuer.certify("another")
    locked = tmp_path / "locked.pem"
    key = load_pem_private_key(cert.read_bytes(), None)
    secret = BestAvailableEncryption(b"secret")
    locked.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, secret))
    monkeypatch.setenv("FEDSVC_TARGET", "127.0.0.1:1")
    monkeypatch.setenv("FEDSVC_CLIENT_CERT", str(cert))
    for file, words in ((locked, f"{locked} is encrypted"), (other, f"{cert} does not go with {other}")):
        with pytest.raises(ConfigurationError, match=words):
            FedsvcClient("127.0.0.1:1", timeout=1, tls=TLS(None, cert, file)).get_queue_stats()
        monkeypatch.setenv("FEDSVC_CLIENT_KEY", str(file))
        with pytest.raises(ConfigurationError, match=f"FEDSVC_CLIENT_KEY: {words}"):
            Configuration.read()


@pytest.mark.parametrize("kind", [FedsvcClient, AsyncFedsvcClient])
@pytest.mark.parametrize(
    ("target", "token", "wrong"),
    [
        ("", None, "the target is"),
        (" ", None, "the target is"),
        ("h:1", "two\nlines", "this is no token"),
        ("h:1", "\xfc", "this is no token"),
    ],
)
def test_a_target_or_token_that_is_none_is_refused_at_once(
    kind: Any, target: str, token: str | None, wrong: str
) -> None:
    with pytest.raises(ValueError, match=wrong):
        kind(target, token)


@pytest.mark.parametrize(
    ("token", "sent"), [("word\n", ["Bearer word"]), (None, []), ("", []), ("\n", [])], ids=repr
)
async def test_a_token_may_come_with_the_end_of_its_line_and_none_is_none(
    token: str | None, sent: list[str]
) -> None:
    servicer = Failing()
    shown: list[Any] = []

    async def told(request: Any, context: Any) -> Any:
        shown.extend(value for name, value in context.invocation_metadata() if name == "authorization")
        return pb.QueueActivityResponse()

    servicer.QueueActivity = told  # type: ignore[method-assign]
    async with served(servicer) as target, AsyncFedsvcClient(target, token) as client:
        await client.queue_activity(ACTIVITY, "https://a.example/inbox", **CALL)
    assert shown == sent


def nested(depth: int) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for _ in range(depth):
        made = {"object": made}
    return made


@pytest.mark.parametrize(
    ("named", "changes"),
    [
        ("activity", {"activity": '{"id":"\ud800"}'}),
        ("activity", {"activity": {"id": "\ud800"}}),
        ("activity", {"activity": nested(100_000)}),
        ("destination", {"destination": "https://a.example/\ud800"}),
        ("destination", {"destination": None}),
        ("private_key", {"private_key": b"\xff"}),
        ("private_key", {"private_key": 5}),
        ("key_id", {"key_id": "https://me.example/\ud800"}),
        ("key_id", {"key_id": 5}),
        ("ordering_key", {"ordering_key": 5}),
        ("supersede_key", {"supersede_key": "\ud800"}),
        ("content_type", {"content_type": b"text/plain"}),
        ("proof_key", {"proof_key": 5}),
        ("proof_key_id", {"proof_key_id": 5}),
        ("not_before", {"not_before": datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=1)))}),
        ("request_id", {"request_id": 5}),
        ("not_before", {"not_before": "2026-01-01"}),
        ("expire_time", {"expire_time": 5}),
    ],
)
def test_what_cannot_be_sent_is_named_before_anything_is_sent(named: str, changes: dict[str, Any]) -> None:
    call = {"activity": ACTIVITY, "destination": "https://a.example/inbox", **CALL} | changes
    with FedsvcClient("127.0.0.1:1") as client, pytest.raises(InvalidRequest, match=named):
        client.queue_activity(**call)


@pytest.mark.parametrize(
    ("item", "named"),
    [
        ({"destination": "https://a.example/\ud800"}, "items.0..destination"),
        ({"destination": "https://a.example/inbox", "prio": "urgent"}, "items.0. has prio"),
        ({"destination": "https://a.example/inbox", "request_id": 5}, "items.0..request_id"),
    ],
)
def test_an_item_that_cannot_be_sent_is_named(item: dict[str, Any], named: str) -> None:
    with FedsvcClient("127.0.0.1:1") as client, pytest.raises(InvalidRequest, match=named):
        client.queue_activities([{"activity": ACTIVITY} | item], **CALL)


def test_an_item_that_is_none_is_named() -> None:
    item: Any = (ACTIVITY, "https://a.example/inbox")
    with FedsvcClient("127.0.0.1:1") as client, pytest.raises(InvalidRequest, match=r"items.0. is tuple"):
        client.queue_activities([item], **CALL)


def test_a_key_that_is_none_is_told_by_the_reason_that_a_server_gives() -> None:
    bad: dict[str, Any] = {
        "activity": ACTIVITY,
        "destination": "https://a.example/inbox",
        "private_key": b"\xff",
    }
    with FedsvcClient("127.0.0.1:1") as client:
        with pytest.raises(InvalidRequest, match="is not in PEM") as alone:
            client.queue_activity(**bad, key_id="key")
        with pytest.raises(InvalidRequest, match="is not in PEM") as among_others:
            client.queue_activities([bad], key_id="key")
    assert (alone.value.reason, among_others.value.reason) == ("INVALID_KEY", "INVALID_KEY")


@pytest.mark.parametrize(
    "inboxes",
    ["https://a.example/inbox", b"x", None, ["https://a.example/inbox", None], ["https://a.example/\udfff"]],
)
def test_inboxes_that_are_none_are_refused_before_anything_is_sent(inboxes: Any) -> None:
    with FedsvcClient("127.0.0.1:1") as client, pytest.raises(InvalidRequest, match="inboxes"):
        client.fan_out(ACTIVITY, inboxes, **CALL)


class Asked(Failing):
    """Keeps what it is asked beside activities."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Any] = []

    async def WatchOutcomes(self, request: pb.WatchOutcomesRequest, context: Any) -> Any:
        self.asked.append(request)
        yield pb.WatchOutcomesResponse(cursor="1", heartbeat=True)

    async def ListDeliveries(self, request: pb.ListDeliveriesRequest, context: Any) -> Any:
        self.asked.append(request)
        return pb.ListDeliveriesResponse()

    async def CancelDeliveries(self, request: pb.CancelDeliveriesRequest, context: Any) -> Any:
        self.asked.append(request)
        return pb.CancelDeliveriesResponse()


async def test_a_single_text_where_several_may_be_given_is_not_taken_for_its_characters() -> None:
    servicer = Asked()
    async with served(servicer) as target, AsyncFedsvcClient(target) as client:
        chosen = {"event_types": "OUTCOME", "states": "DEAD", "activity_types": "Like", "hosts": "a.example"}
        await anext(client.watch_outcomes(heartbeats=True, **chosen))
        await client.list_deliveries("a", states=DeliveryState.DEAD)
        [_ async for _ in client.iterate_deliveries("a", states="dead")]
        await client.cancel_deliveries("1-1")
    watch, once, again, cancel = servicer.asked
    dead = [types_pb2.DELIVERY_STATE_DEAD]
    assert (watch.event_types, watch.states) == ([pb.EVENT_TYPE_OUTCOME], dead)
    assert (watch.activity_types, watch.hosts) == (["Like"], ["a.example"])
    assert (once.states, again.states) == (dead, dead)
    assert cancel.deliveries.delivery_ids == ["1-1"]


@pytest.mark.parametrize("selectors", [{}, {"delivery_ids": ["1-1"], "host": "a.example"}])
def test_deliveries_are_cancelled_by_one_selector(selectors: dict[str, Any]) -> None:
    with FedsvcClient("127.0.0.1:1") as client, pytest.raises(InvalidRequest, match="give one of"):
        client.cancel_deliveries(**selectors)


#: forks while a thread makes the client's first connection; the child calls, within 10 s
