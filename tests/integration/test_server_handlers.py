"""What callers see of handlers that refuse, and of those that are broken."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
from google.rpc import code_pb2, error_details_pb2, status_pb2
from servers.front import Front

from fedsvc.v1 import delivery_service_pb2 as pb
from fedsvc.v1 import operations_service_pb2

PLUGIN = """
from fedsvc.handlers import Handler

class Broken(Handler):
    types = ("Join",)

    def check(self, activity):
        return activity.document["nothing"]
"""


@pytest.fixture(autouse=True)
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package with a handler that raises, installed."""
    metadata = tmp_path / "broken_plugin-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-plugin\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text("[fedsvc.handlers]\njoin = broken_plugin:Broken\n")
    (tmp_path / "broken_plugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.fixture
def logs() -> Iterator[Any]:
    with structlog.testing.capture_logs() as captured:
        yield captured


def request_of(pem: str, kind: str, number: int, object_: Any = "https://o.example/1") -> Any:
    activity = {"id": f"https://me.example/{number}", "type": kind, "actor": "https://me.example/u/a"}
    return pb.QueueActivityRequest(
        activity=json.dumps(activity | {"object": object_}).encode(),
        inbox="https://a.example/inbox",
        signing_key=pb.SigningKey(key_id="https://me.example/u/a#main-key", private_key_pem=pem),
    )


async def accepted(server: Front) -> int:
    stats = await server.operations.GetQueueStats(operations_service_pb2.GetQueueStatsRequest())
    return int(stats.accepted)


async def test_a_shape_that_every_receiver_would_refuse_is_refused_and_the_field_named(
    server: Front, rsa_pem: str
) -> None:
    fan_out = pb.FanOutActivityRequest(
        activity=request_of(rsa_pem, "Undo", 1, {"actor": "https://me.example/u/b", "type": "Like"}).activity,
        inboxes=["https://a.example/inbox"],
        signing_key=request_of(rsa_pem, "Undo", 1).signing_key,
    )
    for call in (
        server.delivery.QueueActivity(request_of(rsa_pem, "Create", 1, {"id": "https://me.example/n"})),
        server.delivery.FanOutActivity(fan_out),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert str(refused.value.details()) in (
            "activity.object.type: is missing",
            "activity.object.actor: is not activity.actor",
        )
    assert await accepted(server) == 0


async def test_a_handler_that_raises_fails_the_call_is_named_and_logged_with_its_traceback(
    server: Front, rsa_pem: str, logs: Any
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await server.delivery.QueueActivity(request_of(rsa_pem, "Join", 1))
    assert failed.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert failed.value.details() == "the handler of Join, broken_plugin.Broken, failed; see the log"
    trailers = dict(tuple(pair) for pair in failed.value.trailing_metadata() or ())
    info = error_details_pb2.ErrorInfo()
    assert status_pb2.Status.FromString(trailers["grpc-status-details-bin"]).details[0].Unpack(info)
    assert (info.reason, info.domain) == ("HANDLER_FAILED", "fedsvc")
    (logged,) = [log for log in logs if log["event"] == "handler_failed"]
    assert isinstance(logged["exc_info"], KeyError)
    assert logged["exc_info"].__traceback__ is not None
    assert await accepted(server) == 0


async def test_in_a_batch_a_broken_handler_fails_its_own_items_only(server: Front, rsa_pem: str) -> None:
    batch = pb.QueueActivitiesRequest(
        requests=[request_of(rsa_pem, kind, number) for number, kind in enumerate(("Like", "Join", "View"))]
    )
    like, join, view = (await server.delivery.QueueActivities(batch)).results
    assert like.HasField("accepted")
    assert view.HasField("accepted")
    assert (join.error.code, join.error.reason, join.error.field) == (
        code_pb2.FAILED_PRECONDITION,
        "HANDLER_FAILED",
        "requests[1].activity",
    )
    assert await accepted(server) == 2
