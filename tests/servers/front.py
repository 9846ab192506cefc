"""fedsvc's server inside the test's own process, on loopback, with raw stubs to call it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from fedsvc.config import Settings
from fedsvc.server.app import Server
from fedsvc.v1.delivery_service_pb2_grpc import DeliveryServiceStub
from fedsvc.v1.key_service_pb2_grpc import KeyServiceStub
from fedsvc.v1.operations_service_pb2_grpc import OperationsServiceStub
from servers.migrated import prepare


@dataclass
class Front:
    target: str
    channel: grpc.aio.Channel
    http: str
    delivery: Any
    operations: Any
    keys: Any


@asynccontextmanager
async def front(settings: Settings, *, reflect: bool = True, farewell: float = 0.0) -> AsyncIterator[Front]:
    """A migrated server that is listening; whether it is serving is another question. Few tests have callers
    that go on when it stops: `farewell` is for them."""
    await asyncio.to_thread(prepare, settings)
    told: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()

    def status(report: dict[str, Any]) -> None:
        if not told.done():
            told.set_result(report)

    server = Server(settings, status, reflect)
    server.farewell = farewell
    running = asyncio.create_task(server.run())
    try:
        await asyncio.wait((told, running), timeout=20, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
        report = told.result()
        async with grpc.aio.insecure_channel(
            report["grpc"], options=[("grpc.max_send_message_length", 64 * 1024 * 1024)]
        ) as channel:
            yield Front(
                report["grpc"],
                channel,
                report["http"],
                DeliveryServiceStub(channel),
                OperationsServiceStub(channel),
                KeyServiceStub(channel),
            )
    finally:
        server.stop()
        await asyncio.wait_for(running, 20)
