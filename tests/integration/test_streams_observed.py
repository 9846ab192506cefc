"""Calls with many responses are counted and traced as others are, however they end."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import REGISTRY
from servers.front import Front, front

from fedsvc.config import Settings
from fedsvc.tracing import Tracing
from fedsvc.v1 import operations_service_pb2 as ops

WATCH = "WatchQueueStats"
TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = (("traceparent", f"00-{TRACE}-b7ad6b7169203331-01"),)


@pytest.fixture(autouse=True)
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    kept = InMemorySpanExporter()
    tracing = Tracing(SimpleSpanProcessor(kept), "fedsvc-test")
    monkeypatch.setattr(Tracing, "from_settings", lambda *_: tracing)
    return kept


def watch(server: Front, seconds: float) -> Any:
    interval = Duration()
    interval.FromMilliseconds(int(seconds * 1000))
    return server.operations.WatchQueueStats(
        ops.WatchQueueStatsRequest(interval=interval), metadata=PARENT, timeout=60
    )


def counted(code: str) -> float:
    return REGISTRY.get_sample_value("fedsvc_rpcs_total", {"method": WATCH, "code": code}) or 0.0


def open_now() -> float:
    return REGISTRY.get_sample_value("fedsvc_open_streams", {"method": WATCH}) or 0.0


async def ended(spans: InMemorySpanExporter, count: int) -> None:
    """Their callers may know of it before they have."""
    async with asyncio.timeout(10):
        while open_now() or len(spans.get_finished_spans()) < count:
            await asyncio.sleep(0.01)


def told(spans: InMemorySpanExporter) -> list[tuple[str, Any, Any]]:
    """Of the spans that have ended: trace, method, code."""
    found: list[tuple[str, Any, Any]] = []
    for span in spans.get_finished_spans():
        assert span.context is not None
        assert span.attributes is not None
        of_call = (span.attributes["rpc.method"], span.attributes["rpc.grpc.status_code"])
        found.append((f"{span.context.trace_id:032x}", *of_call))
    return found


@pytest.mark.parametrize("reading", [False, True], ids=["in the pause", "while responses come"])
async def test_one_that_its_caller_leaves_counts_as_cancelled(
    server: Front, spans: InMemorySpanExporter, reading: bool
) -> None:
    before = counted("CANCELLED")
    calls = [watch(server, 0.1 if reading else 3600) for _ in range(3)]
    for call in calls:
        for _ in range(3 if reading else 1):
            await call.read()
    assert open_now() == 3
    for call in calls:
        call.cancel()
    await ended(spans, 3)
    assert counted("CANCELLED") == before + 3
    assert told(spans) == [(TRACE, WATCH, grpc.StatusCode.CANCELLED.value[0])] * 3


async def test_one_that_is_refused_counts_as_what_it_was_told(
    server: Front, spans: InMemorySpanExporter
) -> None:
    before = counted("INVALID_ARGUMENT")
    with pytest.raises(grpc.aio.AioRpcError, match="interval"):
        await watch(server, 0.01).read()
    await ended(spans, 1)
    assert (counted("INVALID_ARGUMENT"), open_now()) == (before + 1, 0)
    assert told(spans) == [(TRACE, WATCH, grpc.StatusCode.INVALID_ARGUMENT.value[0])]


async def test_one_that_a_stopping_server_ends_counts_as_unavailable(
    environment: dict[str, str], spans: InMemorySpanExporter
) -> None:
    before = counted("UNAVAILABLE")
    async with front(Settings.from_environment(environment)) as server:
        call = watch(server, 3600)
        await call.read()
    assert (counted("UNAVAILABLE"), open_now()) == (before + 1, 0)
    assert told(spans) == [(TRACE, WATCH, grpc.StatusCode.UNAVAILABLE.value[0])]
