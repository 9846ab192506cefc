"""The health service: who watches is told what is new, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from fedsvc.config_types import Address
from fedsvc.errors import ConfigurationError
from fedsvc.server import health as health_module
from fedsvc.server.health import Health, serve_alone

UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Aborted(Exception):
    pass


class Context:
    """Of a call."""

    async def abort(self, code: grpc.StatusCode, details: str) -> None:
        raise Aborted(code)


def watch(health: Health, service: str = "") -> AsyncGenerator[Any, None]:
    return health.Watch(health_pb2.HealthCheckRequest(service=service), Context())


async def check(health: Health, service: str) -> Any:
    return (await health.Check(health_pb2.HealthCheckRequest(service=service), Context())).status


async def test_a_service_that_nobody_has_told_of_is_unknown_and_may_be_told_of_later() -> None:
    health = Health()
    with pytest.raises(Aborted, match="NOT_FOUND"):
        await check(health, "a")
    watcher = watch(health, "a")
    assert (await anext(watcher)).status == UNKNOWN
    await health.tell({"a": False, "b": True})
    assert (await anext(watcher)).status == NOT_SERVING
    assert [await check(health, name) for name in "ab"] == [NOT_SERVING, SERVING]
    await watcher.aclose()


async def test_what_is_told_again_is_no_news() -> None:
    health = Health()
    await health.tell({"": True})
    watcher = watch(health)
    assert (await anext(watcher)).status == SERVING
    news = asyncio.ensure_future(anext(watcher))
    for _ in range(3):
        await health.tell({"": True})
        await asyncio.sleep(0)
    assert not news.done()
    await health.tell({"": False})
    assert (await news).status == NOT_SERVING
    await watcher.aclose()


async def test_after_the_end_nothing_serves_any_more_whatever_is_told_and_who_watches_may_go() -> None:
    health = Health()
    await health.tell({"": True, "a": True})
    watcher = watch(health, "a")
    assert (await anext(watcher)).status == SERVING
    await health.end()
    await health.tell({"": True, "a": True})
    assert [await check(health, name) for name in ("", "a")] == [NOT_SERVING] * 2
    assert (await anext(watcher)).status == NOT_SERVING
    over = asyncio.ensure_future(anext(watcher, None))
    await asyncio.sleep(0)
    assert not over.done()
    await health.close()
    async with asyncio.timeout(10):
        assert await over is None


async def test_who_leaves_makes_room_for_another_watcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_module, "MOST_WATCHERS", 2)
    health = Health()
    one, two = watch(health), watch(health)
    for watcher in (one, two):
        await anext(watcher)
    with pytest.raises(Aborted, match="UNIMPLEMENTED"):
        await anext(watch(health))
    await one.aclose()
    three = watch(health)
    assert (await anext(three)).status == UNKNOWN
    with pytest.raises(Aborted, match="UNIMPLEMENTED"):
        await anext(watch(health))
    for watcher in (two, three):
        await watcher.aclose()


async def test_an_address_that_is_taken_is_told_with_the_setting(free_port: int) -> None:
    address = Address("127.0.0.1", free_port)
    server = await serve_alone(Health(), address)
    try:
        with pytest.raises(ConfigurationError, match="FEDSVC_HEALTH_LISTEN"):
            await serve_alone(Health(), address)
    finally:
        await server.stop(0)
