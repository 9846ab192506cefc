"""Whether a server says that it can serve, on a Redis that takes no writes any more."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from servers.spilling import EMPTY
from servers.unused_ports import unused_port
from servers.valkey import ValkeyServer, valkey_server

from fedsvc.config import Settings
from fedsvc.domain.delivery import Priority
from fedsvc.errors import ConfigurationError, Overloaded, QueueUnavailable
from fedsvc.metrics import REDIS_ERRORS
from fedsvc.queue.keys import Keys
from fedsvc.queue.link import Link
from fedsvc.queue.server_info import server_info
from fedsvc.server import monitor as monitor_module
from fedsvc.server.monitor import Monitor
from fedsvc.server.pressure import Pressure


def errors() -> float:
    return float(REDIS_ERRORS._value.get())


async def test_a_server_whose_redis_cannot_write_to_its_disk_is_not_ready(tmp_path: Path) -> None:
    directory = tmp_path / "redis"
    directory.mkdir()
    with valkey_server(directory) as server:
        settings = Settings.from_environment({"REDIS_URL": server.url})
        link, told = Link(server.url), list[bool]()
        monitor = Monitor(settings, link, Keys(), Pressure(settings), told.append)
        try:
            await monitor.look()
            assert monitor.serving
            await link.call("CONFIG", "SET", "save", "3600 1")
            shutil.rmtree(directory)
            await link.call("BGSAVE")
            async with asyncio.timeout(20):
                while b"rdb_last_bgsave_status:err" not in await link.call("INFO", "persistence"):
                    await asyncio.sleep(0.05)
            before = errors()
            await monitor.look()
            assert "MISCONF" in monitor.problem
            assert errors() == before + 1, "and it is counted"
            await link.call("CONFIG", "SET", "stop-writes-on-bgsave-error", "no")
            await monitor.look()
            assert told == [True, False, True]
        finally:
            await link.close()


async def test_a_redis_without_a_file_has_written_it(tmp_path: Path) -> None:
    with valkey_server(tmp_path) as server:
        link = Link(server.url)
        assert (await server_info(link)).aof_written
        await link.close()


class Desk:
    """A monitor, and what it has told."""

    def __init__(self, url: str, namespace: str) -> None:
        self.settings = Settings.from_environment({"REDIS_URL": url, "FEDSVC_NAMESPACE": namespace})
        self.link, self.keys = Link(url), Keys(namespace)
        self.pressure = Pressure(self.settings)
        self.told: list[bool] = []
        self.monitor = self.of(self.settings)

    def of(self, settings: Settings) -> Monitor:
        return Monitor(settings, self.link, self.keys, self.pressure, self.told.append)


@pytest.fixture
async def desk(valkey: ValkeyServer, namespace: str) -> AsyncIterator[Desk]:
    desk = Desk(valkey.url, namespace)
    yield desk
    await desk.link.close()


async def test_what_has_not_changed_is_not_told_again(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (desk.monitor.serving, desk.monitor.problem) == (False, "not started")
    for _ in range(3):
        await desk.monitor.look()
    assert (desk.monitor.serving, desk.monitor.problem, desk.told) == (True, "", [True])
    info = replace(EMPTY, master=False)

    async def told(_: Link) -> object:
        return info

    monkeypatch.setattr(monitor_module, "server_info", told)
    for _ in range(3):
        await desk.monitor.look()
    assert (desk.monitor.problem, desk.told) == ("Redis is a replica, which takes no writes", [True, False])
    info = replace(EMPTY, aof_written=False)
    await desk.monitor.look()
    assert (desk.monitor.problem, desk.told) == ("Redis cannot write its append-only file", [True, False])
    info = replace(EMPTY, used_memory=99)
    await desk.monitor.look()
    assert desk.told == [True, False, True]
    with pytest.raises(Overloaded):
        desk.pressure.check(Priority.BULK)


async def test_without_the_replicas_that_must_have_a_call_none_can_be_served(
    desk: Desk, tmp_path: Path
) -> None:
    durable = {"FEDSVC_DURABILITY": "replicated", "FEDSVC_REDIS_TIMEOUT": "1"}
    with valkey_server(tmp_path, port=unused_port()) as master:
        link = Link(master.url)
        settings = Settings.from_environment({"REDIS_URL": master.url, **durable})
        monitor = Monitor(settings, link, desk.keys, desk.pressure, desk.told.append)
        await monitor.look()
        assert monitor.problem == "Redis has 0 of the 1 replicas that must have a call"
        follows = ("--replicaof", *master.url.removeprefix("redis://").removesuffix("/0").split(":"))
        (tmp_path / "replica").mkdir()

        async def until_told(times: int) -> None:
            async with asyncio.timeout(30):
                while len(desk.told) < times:
                    await monitor.look()
                    await asyncio.sleep(0.05)

        with valkey_server(tmp_path / "replica", extra=follows):
            await until_told(1)
        await until_told(2)
        await link.close()
    assert desk.told == [True, False]


async def test_a_redis_that_does_not_answer_in_time_is_told(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    await desk.monitor.look()

    async def hangs(_: Link) -> object:
        return await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(monitor_module, "server_info", hangs)
    monkeypatch.setattr(Monitor, "DEADLINE", 0.05)
    await desk.monitor.look()
    assert (desk.monitor.problem, desk.told) == ("Redis does not answer in time", [True, False])


async def test_a_queue_with_another_number_of_partitions_ends_the_server(desk: Desk) -> None:
    await desk.monitor.look()
    other = desk.settings.model_copy(update={"partitions": desk.settings.partitions + 1})
    async with asyncio.timeout(10):
        with pytest.raises(ConfigurationError, match="partitions"):
            await desk.of(other).run()


async def test_whether_redis_can_be_as_safe_as_it_must_is_asked_until_it_has_answered(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Settings] = []
    away = True

    async def check(_: Link, settings: Settings) -> None:
        asked.append(settings)
        if away:
            raise QueueUnavailable("away")

    monkeypatch.setattr(monitor_module, "check_durability", check)
    await desk.monitor.look()
    assert (desk.monitor.problem, desk.told) == ("away", [])
    away = False
    for _ in range(3):
        await desk.monitor.look()
    assert asked == [desk.settings] * 2


async def test_redis_is_asked_once_in_a_while_only(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = 0

    async def look() -> None:
        nonlocal looked
        looked += 1

    monkeypatch.setattr(desk.monitor, "look", look)
    monkeypatch.setattr(Monitor, "EVERY", 1000.0)
    running = asyncio.create_task(desk.monitor.run())
    for _ in range(20):
        await asyncio.sleep(0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert looked == 1
