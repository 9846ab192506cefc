"""Counts, times and traces every call.

Methods come here as `reception.py` serves them: requests are a stream, and many responses are written by the
method itself.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import grpc
import structlog

from fedsvc.server.caller import ANYBODY, caller
from fedsvc.server.metrics import REFUSED, RPC_SECONDS, RPCS, STREAMS
from fedsvc.tracing import Tracing, carried, trace_id

Continuation = Callable[[grpc.HandlerCallDetails], Awaitable["grpc.RpcMethodHandler[Any, Any] | None"]]
#: asked all the time, and of no interest
_HEALTH = "/grpc.health.v1.Health/"
#: how a call ends that its caller has no right to
_REFUSED: Final = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
#: seconds between two log lines about one caller that was refused
_TELL_EVERY: Final = 10.0

log = structlog.get_logger(__name__)


class Observe(grpc.aio.ServerInterceptor):
    def __init__(self) -> None:
        #: (code, caller) -> when it was told last, and how many calls were refused since
        self._refused: dict[tuple[str, str], tuple[float, int]] = {}

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        # Only methods that exist come here, so the label's values are bounded.
        method = handler_call_details.method.rsplit("/", 1)[-1]
        if handler.stream_stream is not None:
            return _served(self._watched(handler.stream_stream, method, handler_call_details.method), handler)
        inner: Any = handler.stream_unary
        seconds = RPC_SECONDS.labels(method)

        async def observed(request: Any, context: Any) -> Any:
            begun = time.perf_counter()
            try:
                return await inner(request, context)
            finally:
                seconds.observe(time.perf_counter() - begun)
                self._ended(method, handler_call_details.method, _code(context))

        return _served(observed, handler)

    def _watched(self, inner: Any, method: str, path: str) -> Any:
        """A method with many responses. How long it takes is its caller's will: no time is kept of it."""
        streams = STREAMS.labels(method)

        async def watched(request: Any, context: Any) -> None:
            try:
                with streams.track_inprogress():
                    await inner(request, context)
            finally:
                self._ended(method, path, _code(context))

        return watched

    def _ended(self, method: str, path: str, code: grpc.StatusCode) -> None:
        RPCS.labels(method, code.name).inc()
        if code in _REFUSED:
            self._refuse(path, code.name, "" if caller() is ANYBODY else caller().name)

    def _refuse(self, path: str, code: str, name: str) -> None:
        """Each caller has log lines of its own: a stranger who tries again and again hides no other."""
        REFUSED.labels(code).inc()
        told, refused = self._refused.get((code, name), (float("-inf"), 0))
        now = time.monotonic()
        if now - told >= _TELL_EVERY:
            log.warning("caller_refused", method=path, code=code, caller=name, refused=refused + 1)
            told, refused = now, -1
        self._refused[code, name] = told, refused + 1


class Trace(grpc.aio.ServerInterceptor):
    """A span for each call. Only there if tracing is on."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = await continuation(handler_call_details)
        method, metadata = handler_call_details.method, handler_call_details.invocation_metadata
        if handler is None or method.startswith(_HEALTH):
            return handler
        inner: Any = handler.stream_unary or handler.stream_stream

        async def traced(request: Any, context: Any) -> Any:
            with self._tracing.call(method, metadata) as span:
                if carried():
                    structlog.contextvars.bind_contextvars(trace_id=trace_id(carried()))
                try:
                    return await inner(request, context)
                finally:
                    span.set_attribute("rpc.grpc.status_code", _code(context).value[0])

        return _served(traced, handler)


def _code(context: Any) -> grpc.StatusCode:
    """How a call ends, for the `finally` in which it does."""
    code = context.code()
    if isinstance(code, grpc.StatusCode):
        return code
    left = isinstance(sys.exception(), asyncio.CancelledError)
    return grpc.StatusCode.CANCELLED if left else grpc.StatusCode.OK


def _served(method: Any, like: Any) -> grpc.RpcMethodHandler[Any, Any]:
    """`method` in the place of `like`'s."""
    many = like.stream_stream is not None
    make = grpc.stream_stream_rpc_method_handler if many else grpc.stream_unary_rpc_method_handler
    return make(
        method, request_deserializer=like.request_deserializer, response_serializer=like.response_serializer
    )
