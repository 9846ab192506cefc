"""Whether a server says that it can serve, on a Redis that takes no writes any more."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

from servers.valkey import valkey_server

from fedsvc.config import Settings
from fedsvc.metrics import REDIS_ERRORS
from fedsvc.queue.keys import Keys
from fedsvc.queue.link import Link
from fedsvc.queue.server_info import server_info
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
