"""Traces of calls and deliveries, by OpenTelemetry. Nothing of it is imported unless FEDSVC_TRACING is on.

    caller's span ──metadata──▶ span of the call ──message──▶ span of each attempt

The context of a sampled call (W3C Trace Context) is stored with its message, once for all deliveries of it;
what is not sampled stores nothing. It goes no further than to our workers: inboxes are not told.

An attempt's span id follows from its trace, its delivery and its number, so that each attempt links to the
one before, whichever worker made that, and nothing has to be kept for it. Where spans go to, and how many
there are, the standard OTEL_ variables say.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any, Final, Self

from fedsvc import __version__
from fedsvc.config import Settings
from fedsvc.errors import ConfigurationError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.trace import Span

#: OTEL_EXPORTER_OTLP_PROTOCOL -> the name by which its exporter is installed
_EXPORTERS: Final = {"grpc": "otlp_proto_grpc", "http/protobuf": "otlp_proto_http"}
#: characters of a tracestate that is carried on; a longer one is left out (W3C Trace Context, 3.3.1.5)
_MAX_STATE: Final = 512
#: seconds that a process gives its last spans when it ends
_FLUSH_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class _Traced:
    """The call that is being served."""

    span: Span
    #: what its messages carry
    carried: str


_call: ContextVar[_Traced | None] = ContextVar("traced", default=None)


def carried() -> str:
    """What a message of the call that is being served carries: `traceparent`, and `tracestate` after a space
    if there is one. Empty if the call is not traced."""
    traced = _call.get()
    return traced.carried if traced is not None else ""


def annotate(**attributes: Any) -> None:
    """Add to the span of the call that is being served, if it is traced; names get the prefix `fedsvc.`."""
    traced = _call.get()
    if traced is not None:
        for name, value in attributes.items():
            traced.span.set_attribute(f"fedsvc.{name}", value)


def trace_id(carried: str) -> str:
    """32 hexadecimal digits; empty if nothing is carried."""
    return carried[3:35]


@dataclass(frozen=True, slots=True)
class AttemptTold:
    """One attempt, as its span tells it."""

    name: str
    delivery: str
    #: from 1
    number: int
    latency_ms: int
    #: empty if it was delivered
    problem: str
    attributes: Mapping[str, str | int | bool]


class Tracing:
    def __init__(self, processor: SpanProcessor, service: str) -> None:
        """`processor` gets what ends; `service` names this process, unless OTEL_SERVICE_NAME does."""
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._ids = _ids()
        named = {
            "service.name": service, "service.version": __version__, "service.instance.id": str(os.getpid())
        }  # fmt: skip
        resource = Resource.create({**named, **OTELResourceDetector().detect().attributes})
        self._provider = TracerProvider(resource=resource, id_generator=self._ids, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("fedsvc", __version__)
        self._propagator = TraceContextTextMapPropagator()

    @classmethod
    def from_settings(cls, settings: Settings, service: str) -> Self | None:
        """None if it is off. Raises ConfigurationError."""
        if not settings.tracing or os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
            return None
        try:
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError:
            raise ConfigurationError(
                "FEDSVC_TRACING", "needs OpenTelemetry: pip install 'fedsvc[otel]'"
            ) from None
        exporter = _exporter()
        return None if exporter is None else cls(BatchSpanProcessor(exporter), service)

    @contextmanager
    def call(self, method: str, metadata: Any) -> Iterator[Span]:
        """Trace a call of a gRPC method that came with this metadata, until the block ends."""
        from opentelemetry.trace import SpanKind

        given = {k: v for k, v in metadata or () if k in ("traceparent", "tracestate") and isinstance(v, str)}
        service, _, name = method.lstrip("/").partition("/")
        attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}
        span = self._tracer.start_span(
            f"{service}/{name}",
            self._propagator.extract(given),
            SpanKind.SERVER,
            attributes,
        )
        kept = _call.set(_Traced(span, self._carried(span)))
        try:
            yield span
        finally:
            _call.reset(kept)
            span.end()

    def attempt(self, carried: str, told: AttemptTold) -> None:
        """One attempt, which has just ended, of a delivery whose message carries this."""
        from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, get_current_span

        parent, _, state = carried.partition(" ")
        context = self._propagator.extract({"traceparent": parent, "tracestate": state})
        origin = get_current_span(context).get_span_context()
        if not origin.is_valid:
            return
        links = []
        if told.number > 1:
            before = _span_id(origin.trace_id, told.delivery, told.number - 1)
            links.append(Link(SpanContext(origin.trace_id, before, True, origin.trace_flags)))
        ended = time.time_ns()
        with self._ids.giving(_span_id(origin.trace_id, told.delivery, told.number)):
            span = self._tracer.start_span(
                told.name,
                context,
                SpanKind.CONSUMER,
                {"fedsvc.delivery": told.delivery, "fedsvc.attempt": told.number, **told.attributes},
                links,
                start_time=ended - told.latency_ms * 1_000_000,
            )
        if told.problem:
            span.set_status(Status(StatusCode.ERROR, told.problem))
        span.end(ended)

    def close(self) -> None:
        """Send what is left, within seconds: whoever takes spans may be away, and must hold nobody up."""
        last = threading.Thread(target=self._provider.shutdown, daemon=True)
        last.start()
        last.join(_FLUSH_S)

    def _carried(self, span: Span) -> str:
        if not span.get_span_context().trace_flags.sampled:
            return ""
        from opentelemetry.trace import set_span_in_context

        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, set_span_in_context(span))
        state = carrier.get("tracestate", "")
        return carrier["traceparent"] + (f" {state}" if 0 < len(state) <= _MAX_STATE else "")


def _exporter() -> Any:
    """As the OTEL_ variables say; None for `none`. Raises ConfigurationError."""
    name = os.environ.get("OTEL_TRACES_EXPORTER", "").strip() or "otlp"
    variable = "OTEL_TRACES_EXPORTER"
    if name == "none":
        return None
    if name == "otlp":
        variable = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"
        if not os.environ.get(variable):
            variable = "OTEL_EXPORTER_OTLP_PROTOCOL"
        protocol = os.environ.get(variable, "").strip() or "grpc"
        name = _EXPORTERS.get(protocol, protocol)
    found = metadata.entry_points(group="opentelemetry_traces_exporter", name=name)
    if not found:
        raise ConfigurationError(variable, f"no exporter of traces {name!r} is installed")
    try:
        return next(iter(found)).load()()
    except Exception as error:  # noqa: BLE001 - others' code, and it may be told to do anything
        raise ConfigurationError(variable, f"{name} cannot be used: {error}") from None


def _span_id(trace: int, delivery: str, attempt: int) -> int:
    named = trace.to_bytes(16, "big") + f"{delivery}/{attempt}".encode()
    return int.from_bytes(hashlib.sha256(named).digest()[:8], "big") or 1


def _ids() -> Any:
    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

    class Ids(RandomIdGenerator):
        """Random, but for a span that is given its id. For one thread."""

        _given = 0

        @contextmanager
        def giving(self, id: int) -> Iterator[None]:
            self._given = id
            try:
                yield
            finally:
                self._given = 0

        def generate_span_id(self) -> int:
            return self._given or super().generate_span_id()

    return Ids()
