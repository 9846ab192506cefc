"""What is traced of calls and attempts, seen by an exporter that keeps spans in memory."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from fedsvc.config import Settings
from fedsvc.domain.message import Message
from fedsvc.errors import ConfigurationError
from fedsvc.tracing import AttemptTold, Tracing, annotate, carried, trace_id

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = CALLER[:-1] + "0"
TRACE = int(CALLER[3:35], 16)
METHOD = "/fedsvc.v1.DeliveryService/QueueActivity"


@pytest.fixture
def kept() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracing(kept: InMemorySpanExporter) -> Tracing:
    return Tracing(SimpleSpanProcessor(kept), "fedsvc-test")


def told(number: int = 1, **changes: Any) -> AttemptTold:
    given: dict[str, Any] = {
        "name": "deliver", "delivery": "3-17", "number": number, "latency_ms": 40, "problem": "",
        "attributes": {"server.address": "a.example"},
    }  # fmt: skip
    return AttemptTold(**given | changes)


def ids(span: ReadableSpan) -> tuple[int, int]:
    assert span.context is not None
    return span.context.trace_id, span.context.span_id


def test_a_call_belongs_to_its_callers_trace_and_its_attempts_to_the_call(
    tracing: Tracing, kept: InMemorySpanExporter
) -> None:
    with tracing.call(METHOD, (("traceparent", CALLER), ("tracestate", "a=1"))):
        annotate(activity="https://me.example/1")
        of_message = carried()
    assert carried() == ""
    tracing.attempt(of_message, told())
    call, attempt = kept.get_finished_spans()
    assert (call.name, call.kind) == ("fedsvc.v1.DeliveryService/QueueActivity", SpanKind.SERVER)
    assert call.parent is not None
    assert (ids(call)[0], call.parent.span_id) == (TRACE, int(CALLER[36:52], 16))
    assert call.attributes is not None
    assert call.attributes["rpc.method"] == "QueueActivity"
    assert call.attributes["fedsvc.activity"] == "https://me.example/1"
    assert of_message == f"00-{CALLER[3:35]}-{ids(call)[1]:016x}-01 a=1"
    assert attempt.parent is not None
    assert (ids(attempt)[0], attempt.parent.span_id) == ids(call)
    assert (attempt.name, attempt.kind, attempt.links) == ("deliver", SpanKind.CONSUMER, ())
    assert attempt.attributes is not None
    assert attempt.attributes["server.address"] == "a.example"
    assert attempt.attributes["fedsvc.attempt"] == 1
    assert attempt.start_time is not None
    assert attempt.end_time is not None
    assert attempt.end_time - attempt.start_time == 40_000_000
    assert attempt.context is not None
    assert attempt.context.trace_state.get("a") == "1"


def test_a_retry_links_to_the_attempt_before_though_another_worker_made_that(
    tracing: Tracing, kept: InMemorySpanExporter
) -> None:
    others = InMemorySpanExporter()
    tracing.attempt(CALLER, told(1, problem="timeout"))
    Tracing(SimpleSpanProcessor(others), "another").attempt(CALLER, told(2))
    (first,), (second,) = kept.get_finished_spans(), others.get_finished_spans()
    assert (first.status.status_code, first.status.description) == (StatusCode.ERROR, "timeout")
    assert second.status.status_code is StatusCode.UNSET
    (link,) = second.links
    assert (link.context.trace_id, link.context.span_id) == ids(first)


def test_attempts_of_different_deliveries_have_different_ids(
    tracing: Tracing, kept: InMemorySpanExporter
) -> None:
    tracing.attempt(CALLER, told(1))
    tracing.attempt(CALLER, told(1, delivery="3-18"))
    assert len({ids(span) for span in kept.get_finished_spans()}) == 2


def test_what_the_caller_did_not_sample_is_not_carried(tracing: Tracing, kept: InMemorySpanExporter) -> None:
    with tracing.call(METHOD, (("traceparent", UNSAMPLED),)):
        assert carried() == ""
    tracing.attempt(UNSAMPLED, told())
    assert kept.get_finished_spans() == ()


@pytest.mark.parametrize("parent", ["", "nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", CALLER + "-x"])
def test_a_caller_without_a_sound_context_begins_a_trace(
    tracing: Tracing, kept: InMemorySpanExporter, parent: str
) -> None:
    with tracing.call(METHOD, (("traceparent", parent), ("tracestate", "\x00=="))):
        assert carried().startswith("00-")
    (call,) = kept.get_finished_spans()
    assert call.parent is None
    assert trace_id("") == ""


def test_what_somebody_else_stored_breaks_no_attempt(tracing: Tracing, kept: InMemorySpanExporter) -> None:
    tracing.attempt("nonsense", told())
    assert kept.get_finished_spans() == ()


def test_a_long_tracestate_is_left_out(tracing: Tracing) -> None:
    long = ",".join(f"k{n}={'v' * 60}" for n in range(12))
    with tracing.call(METHOD, (("traceparent", CALLER), ("tracestate", long))):
        assert " " not in carried()


def test_a_sampler_of_the_environment_is_heeded(
    kept: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    with Tracing(SimpleSpanProcessor(kept), "fedsvc-test").call(METHOD, (("traceparent", CALLER),)):
        assert carried() == ""
    assert kept.get_finished_spans() == ()


def test_the_environment_names_the_service(
    kept: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=federation,zone=b")
    Tracing(SimpleSpanProcessor(kept), "fedsvc-test").attempt(CALLER, told())
    (span,) = kept.get_finished_spans()
    assert span.resource.attributes["service.name"] == "federation"
    assert span.resource.attributes["zone"] == "b"


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"OTEL_TRACES_EXPORTER": "teapot"}, "OTEL_TRACES_EXPORTER: no exporter of traces 'teapot'"),
        (
            {"OTEL_EXPORTER_OTLP_PROTOCOL": "post"},
            "OTEL_EXPORTER_OTLP_PROTOCOL: no exporter of traces 'post'",
        ),
        (
            {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "x", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL: no exporter",
        ),
    ],
)
def test_an_exporter_that_is_not_there_is_an_error_at_start(
    variables: dict[str, str], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError, match=named):
        Tracing.from_settings(Settings.from_environment({"FEDSVC_TRACING": "true"}), "x")


@pytest.mark.parametrize("variables", [{"OTEL_SDK_DISABLED": "true"}, {"OTEL_TRACES_EXPORTER": "none"}])
def test_the_environment_can_turn_it_off(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    assert Tracing.from_settings(Settings.from_environment({"FEDSVC_TRACING": "true"}), "x") is None


@pytest.mark.parametrize("protocol", ["", "grpc", "http/protobuf"])
def test_spans_go_out_by_either_protocol(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    tracing = Tracing.from_settings(Settings.from_environment({"FEDSVC_TRACING": "true"}), "x")
    assert tracing is not None
    tracing.close()


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_collector_that_is_away_holds_nobody_up(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr("fedsvc.tracing._FLUSH_S", 0.2)
    tracing = Tracing.from_settings(Settings.from_environment({"FEDSVC_TRACING": "true"}), "x")
    assert tracing is not None
    begun = time.monotonic()
    with tracing.call(METHOD, (("traceparent", CALLER),)):
        assert carried()
    tracing.attempt(CALLER, told())
    tracing.close()
    assert time.monotonic() - begun < 5


def test_a_message_without_a_trace_is_as_small_as_ever_and_keeps_one_with_it() -> None:
    plain = Message(b"{}", "a", "Like", "b", "c", "d", "e")
    traced = Message(b"{}", "a", "Like", "b", "c", "d", "e", trace=CALLER)
    assert len(traced.pack()) == len(plain.pack()) + len(CALLER)
    assert Message.unpack(b"{}", traced.pack()).trace == CALLER
    assert traced.identity() == plain.identity(), "a trace makes it no other message"


def test_nothing_of_it_is_imported_while_it_is_off() -> None:
    code = (
        "import sys, fedsvc.server.app, fedsvc.worker.app\n"
        "from fedsvc.config import Settings; from fedsvc.tracing import Tracing\n"
        "assert Tracing.from_settings(Settings(), 'x') is None\n"
        "ours = ('opentelemetry.sdk.trace', 'opentelemetry.exporter')  # redis-py imports metrics by itself\n"
        "assert not [m for m in sys.modules if m.startswith(ours)]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_without_the_extra_it_cannot_be_turned_on() -> None:
    code = (
        "import sys\n"
        "sys.modules['opentelemetry.sdk.trace.export'] = None\n"
        "from fedsvc.config import Settings; from fedsvc.tracing import Tracing\n"
        "Tracing.from_settings(Settings(tracing=True), 'x')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "FEDSVC_TRACING: needs OpenTelemetry: pip install 'fedsvc[otel]'" in done.stderr
