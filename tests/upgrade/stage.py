"""Servers and workers of any version, and the inboxes that they deliver to."""

from __future__ import annotations

import asyncio
import os
import time
import urllib.request
import zipfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

from aiohttp import web
from fedsvc_client import AsyncFedsvcClient
from servers.inbox import InboxServer
from servers.processes import Fedsvc

RELEASES: Final = Path(__file__).resolve().parents[2] / "releases"
#: seconds for anything to happen
PATIENCE: Final = 60.0
#: port of all inboxes: it is part of what is stored
PORT: Final = 18_473
#: what each host does while data is written; later all take everything
FIT, FLAKY, DOWN, GONE, SLOW, PAUSED = HOSTS = tuple(f"127.77.0.{n}" for n in range(1, 7))
SETTINGS: Final = {
    "FEDSVC_PARTITIONS": "4",
    "FEDSVC_KEY_ENCRYPTION_KEYS": "Zml4dHVyZS1vZi11cGdyYWRlcy1ub3QtYS1zZWNyZXQ=",
    "FEDSVC_ALLOW_HTTP": "true",
    "FEDSVC_ALLOWED_CIDRS": "127.0.0.0/8",
    "FEDSVC_LEASE": "2",
    "FEDSVC_RECOVERY_RATE": "1000",
    "FEDSVC_HOST_START": "8",
}


def released() -> list[str]:
    """Versions of which there is stored data, oldest first."""
    names = [path.name for path in RELEASES.iterdir() if path.is_dir()]
    return sorted(names, key=lambda name: tuple(map(int, name.split("."))))


def unpacked(version: str, target: Path) -> Path | None:
    """The code of `version`, for PYTHONPATH; None if its wheel is not kept any more."""
    for wheel in (RELEASES / version).glob("fedsvc-*.whl"):
        zipfile.ZipFile(wheel).extractall(target)
        return target
    return None


class Inboxes(InboxServer):
    """All hosts, at the one port that is part of what is stored."""

    def __init__(self, troubled: bool = False) -> None:
        super().__init__(self._answered, HOSTS)
        self.port = PORT
        self.troubled = troubled
        #: hosts that were asked while troubled
        self.asked: list[str] = []

    async def __aenter__(self) -> Inboxes:
        end = time.monotonic() + PATIENCE
        while True:  # another run on this machine may have the port
            try:
                await super().__aenter__()
                return self
            except OSError:
                await self._runner.cleanup()
                assert time.monotonic() < end, f"port {PORT} stays taken"
                await asyncio.sleep(0.5)

    async def _answered(self, host: str, body: bytes) -> web.Response:
        self.asked.append(host)
        if self.troubled:
            if host in (FLAKY, DOWN):
                return web.Response(status=500)
            if host == GONE:
                return web.Response(status=410)
            if host == SLOW:
                await asyncio.sleep(PATIENCE)
        return web.Response(status=202)


class Stage:
    """One Redis, one database, and processes of whichever code."""

    def __init__(self, scratch: Path, settings: dict[str, str]) -> None:
        self.scratch = scratch
        self.settings = settings
        self._count = 0

    def command(self, *arguments: str, code: Path | None = None, **more: str) -> Fedsvc:
        """`code`: where another version's is; None for this one's."""
        self._count += 1
        directory = self.scratch / f"process-{self._count}"
        directory.mkdir()
        settings = self.settings | more
        if code is not None:
            settings["PYTHONPATH"] = str(code)
        return Fedsvc(directory, *arguments, settings=settings)

    async def migrate(self, code: Path | None = None) -> None:
        with self.command("migrate", code=code) as migrate:
            assert await asyncio.to_thread(migrate.process.wait, PATIENCE) == 0, migrate.stderr

    async def server(self, stack: AsyncExitStack, ports: list[int], code: Path | None = None) -> Fedsvc:
        """Ready; its gRPC port is the first of `ports`."""
        grpc, http = ports[:2]
        listen = ("--listen", f"127.0.0.1:{grpc}", "--http-listen", f"127.0.0.1:{http}")
        server = stack.enter_context(self.command("server", *listen, code=code))
        await until_ready(server, http)
        return server

    async def worker(self, stack: AsyncExitStack, port: int, code: Path | None = None, **more: str) -> Fedsvc:
        worker = self.command("worker", "--http-listen", f"127.0.0.1:{port}", code=code, **more)
        stack.enter_context(worker)
        await until_ready(worker, port)
        return worker

    def client(self, ports: list[int]) -> AsyncFedsvcClient:
        return AsyncFedsvcClient(f"127.0.0.1:{ports[0]}", timeout=20.0)


async def until_ready(process: Fedsvc, port: int) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ask() -> bool:
        try:
            with direct.open(f"http://127.0.0.1:{port}/readyz", timeout=5):
                return True
        except OSError:
            return False

    async with asyncio.timeout(PATIENCE):
        while not await asyncio.to_thread(ask):
            assert process.process.poll() is None, f"it ended: {process.stderr[-2000:]}"
            await asyncio.sleep(0.05)


def kill_hard(process: Fedsvc) -> None:
    """With all that is below it, as the machine would."""
    below = process.children()
    process.kill()
    for pid in below:
        try:
            os.kill(pid, 9)
        except ProcessLookupError:
            continue
