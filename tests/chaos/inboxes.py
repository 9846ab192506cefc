"""Inboxes on as many hosts as wanted, in one process: they answer 503 now and then, by the seed, and remember
every activity that they took."""

from __future__ import annotations

import hashlib
from collections import Counter

import orjson
from aiohttp import web


class Inboxes:
    """Host n is 127.1.x.y; all listen on one port."""

    def __init__(self, seed: int, hosts: int, refuse: float) -> None:
        self._seed = seed
        self._refuse = int(refuse * 2**32)
        self._tries: Counter[tuple[str, str]] = Counter()
        self._runner: web.AppRunner | None = None
        self.hosts = hosts
        self.port = 0
        #: how often each activity was taken, by host and activity id
        self.taken: Counter[tuple[str, str]] = Counter()
        self.refused = 0

    async def start(self) -> None:
        app = web.Application()
        app.router.add_post("/inbox", self._post)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        # the whole of 127.0.0.0/8 is the loopback interface's
        site = web.TCPSite(self._runner, "0.0.0.0", 0, backlog=1024)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    def host(self, number: int) -> str:
        return f"127.1.{number // 250}.{number % 250 + 1}"

    def url(self, number: int) -> str:
        return f"http://{self.host(number % self.hosts)}:{self.port}/inbox"

    async def _post(self, request: web.Request) -> web.Response:
        id = orjson.loads(await request.read())["id"]
        key = (request.host.split(":")[0], id)
        self._tries[key] += 1
        if self._unlucky(key, self._tries[key]):
            self.refused += 1
            return web.Response(status=503)
        self.taken[key] += 1
        return web.Response(status=202)

    def _unlucky(self, key: tuple[str, str], attempt: int) -> bool:
        text = f"{self._seed} {key[0]} {key[1]} {attempt}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "big") < self._refuse
