"""Inboxes on many hosts, in one process, that check every signature with an independent library and count."""

from __future__ import annotations

from collections import Counter

import orjson
from aiohttp import web
from apsig.draft.verify import Verifier


class Inboxes:
    """Host n is 127.83.x.y; all listen on one port."""

    def __init__(self, public_pem: str) -> None:
        self._public_pem = public_pem
        self._runner: web.AppRunner | None = None
        self.port = 0
        #: how often each activity was taken, by host and activity id
        self.taken: Counter[tuple[str, str]] = Counter()
        self.unsigned = 0

    async def start(self) -> None:
        app = web.Application()
        app.router.add_post("/inbox", self._post)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        # the whole of 127.0.0.0/8 is the loopback interface's
        await web.TCPSite(self._runner, "0.0.0.0", 0, backlog=1024).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    def host(self, number: int) -> str:
        return f"127.83.{number // 250}.{number % 250 + 1}"

    def url(self, number: int) -> str:
        return f"http://{self.host(number)}:{self.port}/inbox"

    async def _post(self, request: web.Request) -> web.Response:
        body = await request.read()
        url = f"http://{request.host}{request.raw_path}"
        verifier = Verifier(self._public_pem, request.method, url, dict(request.headers), body)
        if verifier.verify(raise_on_fail=False) is None:
            self.unsigned += 1
            return web.Response(status=401)
        self.taken[request.host.split(":")[0], orjson.loads(body)["id"]] += 1
        return web.Response(status=202)
