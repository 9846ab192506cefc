"""Counts and times every call."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from fedsvc.server.metrics import RPC_SECONDS, RPCS


class Observe(grpc.aio.ServerInterceptor):
    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = await continuation(handler_call_details)
        if handler is None or handler.unary_unary is None:
            return handler
        inner = handler.unary_unary
        # Only methods that exist come here, so the label's values are bounded.
        method = handler_call_details.method.rsplit("/", 1)[-1]
        seconds = RPC_SECONDS.labels(method)

        async def observed(request: Any, context: Any) -> Any:
            begun = time.perf_counter()
            try:
                return await inner(request, context)
            finally:
                seconds.observe(time.perf_counter() - begun)
                code = context.code()
                RPCS.labels(method, code.name if isinstance(code, grpc.StatusCode) else "OK").inc()

        return grpc.unary_unary_rpc_method_handler(
            observed,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )
