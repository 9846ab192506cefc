"""The standard health service. It asks for no token, so that it must stand any number of strangers.

Source: https://github.com/grpc/grpc/blob/master/doc/health-checking.md. That of grpcio-health-checking is not
used: there a watcher that leaves takes along the news of all others of the same service, and as many may
watch as there may be calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fedsvc.config_types import Address
from fedsvc.errors import ConfigurationError
from fedsvc.server.reception import Everybody

_RESPONSE: Final = health_pb2.HealthCheckResponse
#: watchers at a time, of one process
MOST_WATCHERS: Final = 100
#: bytes of a question where nothing else is asked
_LARGEST_QUESTION: Final = 4096


class Health(health_pb2_grpc.HealthServicer):
    def __init__(self) -> None:
        self._serving: dict[str, bool] = {}
        self._ending = False
        self._closed = False
        self._changed = asyncio.Condition()
        self._watchers = 0

    async def tell(self, serving: dict[str, bool]) -> None:
        """Whether each service serves, by name. After `end` nothing is told any more."""
        if not self._ending:
            async with self._changed:
                self._serving = dict(serving)
                self._changed.notify_all()

    async def end(self) -> None:
        """Nothing serves any more."""
        await self.tell(dict.fromkeys(self._serving, False))
        self._ending = True

    async def close(self) -> None:
        """Whoever watches was told; let them go, lest the server waits for them."""
        async with self._changed:
            self._closed = True
            self._changed.notify_all()

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> Any:
        status = self._status(request.service)
        if status == _RESPONSE.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such service")
        return _RESPONSE(status=status)

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> AsyncGenerator[Any, None]:
        if self._watchers >= MOST_WATCHERS:
            # To a client that chooses servers by their health, this means to do without. By any other refusal
            # it would take us for ill.
            await context.abort(
                grpc.StatusCode.UNIMPLEMENTED, f"{self._watchers} watch already; ask with Check"
            )
        self._watchers += 1
        try:
            known = None
            while True:
                async with self._changed:
                    while (status := self._status(request.service)) == known:
                        if self._closed:
                            return
                        await self._changed.wait()
                known = status
                yield _RESPONSE(status=status)
        finally:
            self._watchers -= 1

    def _status(self, service: str) -> Any:
        serving = self._serving.get(service)
        if serving is None:
            return _RESPONSE.SERVICE_UNKNOWN
        return _RESPONSE.SERVING if serving else _RESPONSE.NOT_SERVING


async def serve_alone(health: Health, address: Address) -> grpc.aio.Server:
    """A server without TLS that has nothing but `health`: Kubernetes' gRPC probes know no TLS. Raises
    ConfigurationError."""
    server = grpc.aio.server(
        options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", _LARGEST_QUESTION)],
        interceptors=[Everybody()],
    )
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    try:
        port = server.add_insecure_port(str(address))
    except RuntimeError:
        port = 0
    if not port:
        raise ConfigurationError("FEDSVC_HEALTH_LISTEN", f"cannot listen on {address}")
    await server.start()
    return server
