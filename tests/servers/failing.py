"""The service that fails in the ways that services do, for the client to bear."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc

from fedsvc.v1 import delivery_service_pb2 as pb
from fedsvc.v1 import types_pb2
from fedsvc.v1.delivery_service_pb2_grpc import add_DeliveryServiceServicer_to_server
from servers.unbuilt import unbuilt

ACTIVITY = {"id": "https://me.example/1", "type": "Like", "actor": "https://me.example/u/a", "object": "ü"}
CALL: dict[str, Any] = {"private_key": "pem", "key_id": "https://me.example/u/a#main-key"}


class Failing:
    """Answers UNAVAILABLE so many times, then takes the activity, or never answers."""

    def __init__(self, failures: int = 0, *, hangs: bool = False) -> None:
        self.failures = failures
        self.hangs = hangs
        self.requests: list[pb.QueueActivityRequest] = []

    def __getattr__(self, name: str) -> Any:
        """What else the service has."""
        if not name[0].isupper():
            raise AttributeError(name)
        return unbuilt

    async def QueueActivity(self, request: pb.QueueActivityRequest, context: Any) -> pb.QueueActivityResponse:
        self.requests.append(request)
        if len(self.requests) <= self.failures:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
        if self.hangs:
            await asyncio.sleep(60)
        return pb.QueueActivityResponse(delivery=types_pb2.Delivery(delivery_id="1-1"))


@asynccontextmanager
async def served(servicer: Any) -> AsyncIterator[str]:
    server = grpc.aio.server()
    add_DeliveryServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)
