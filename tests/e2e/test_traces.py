"""A trace through real processes: from the application's call to each attempt, a retry linked."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import grpc
from aiohttp import web
from servers.collector import Collector, Span
from servers.inbox import InboxServer
from servers.processes import Fedsvc

from fedsvc.v1 import delivery_service_pb2 as pb
from fedsvc.v1.delivery_service_pb2_grpc import DeliveryServiceStub

TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"
KEY_ID = "https://me.example/u/ada#main-key"


async def test_a_trace_goes_from_the_call_to_each_attempt(tmp_path: Path, rsa_pem: str) -> None:
    answers = iter([503])

    async def answer(host: str, body: bytes) -> web.Response:
        return web.Response(status=next(answers, 202))

    activity = {"id": "https://me.example/1", "type": "Like", "actor": "https://me.example/u/ada"}
    settings = {
        "FEDSVC_ALLOW_HTTP": "true", "FEDSVC_ALLOWED_CIDRS": "127.0.0.0/8", "FEDSVC_RETRY_SCALE": "0.001",
        "FEDSVC_LISTEN": "127.0.0.1:0", "FEDSVC_HTTP_LISTEN": "127.0.0.1:0", "FEDSVC_TRACING": "true",
        "FEDSVC_LOG_DELIVERIES": "true", "OTEL_BSP_SCHEDULE_DELAY": "100",
    }  # fmt: skip
    with Collector() as collector:
        settings["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{collector.port}"
        async with InboxServer(answer) as inbox:
            with Fedsvc(tmp_path, "dev", "--data-dir", "data", settings=settings) as fedsvc:
                target, _ = await asyncio.to_thread(fedsvc.ready)
                async with grpc.aio.insecure_channel(target) as channel:
                    answered = await DeliveryServiceStub(channel).QueueActivity(
                        pb.QueueActivityRequest(
                            activity=json.dumps(activity | {"object": "https://o.example/1"}).encode(),
                            inbox=inbox.url(),
                            signing_key=pb.SigningKey(key_id=KEY_ID, private_key_pem=rsa_pem),
                            request_id="r-1",
                        ),
                        metadata=(("traceparent", f"00-{TRACE}-{CALLER}-01"),),
                        timeout=30,
                    )
                await inbox.wait_for(1)
                spans = await asyncio.to_thread(collector.wait_for, lambda spans: len(spans) >= 3)
                log = [json.loads(line) for line in fedsvc.stderr.splitlines() if line.startswith("{")]
                assert inbox.requests[-1].headers.get("traceparent") is None, "inboxes are not told"
    delivery = answered.delivery.delivery_id
    (call,) = of_service(spans, "fedsvc-server")
    first, second = sorted(
        of_service(spans, "fedsvc-worker"), key=lambda span: span.attributes["fedsvc.attempt"]
    )
    assert {span.trace for span in spans} == {TRACE}
    assert (call.name, call.parent) == ("fedsvc.v1.DeliveryService/QueueActivity", CALLER)
    assert call.attributes["fedsvc.activity"] == activity["id"]
    assert [first.parent, second.parent] == [call.id, call.id]
    assert (first.links, second.links) == ((), (first.id,))
    assert (first.failed, second.failed) == (True, False)
    assert [span.attributes["fedsvc.delivery"] for span in (first, second)] == [delivery, delivery]
    assert [span.attributes["fedsvc.outcome"] for span in (first, second)] == ["retry", "delivered"]
    assert [span.attributes["http.response.status_code"] for span in (first, second)] == [503, 202]
    assert first.attributes["server.address"] == "127.0.0.1"
    told = {line["event"]: line for line in log if line.get("delivery") == delivery}
    assert set(told) == {"retry", "delivered"}
    for line in told.values():
        assert (line["activity"], line["host"], line["request_id"], line["trace_id"]) == (
            activity["id"], "127.0.0.1", "r-1", TRACE,
        )  # fmt: skip


def of_service(spans: list[Span], service: str) -> list[Span]:
    return [span for span in spans if span.service == service]
