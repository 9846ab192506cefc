"""Inboxes on loopback that write down what they receive."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from types import TracebackType

from aiohttp import web

Answer = Callable[[str, bytes], Awaitable[web.Response]]


async def accepted(host: str, body: bytes) -> web.Response:
    return web.Response(status=202)


class InboxServer:
    """Answers POSTs at any path, by default with 202. Each of `addresses` (127.0.0.0/8) is a host."""

    def __init__(self, answer: Answer = accepted, addresses: tuple[str, ...] = ("127.0.0.1",)) -> None:
        self.answer = answer
        self.addresses = addresses
        self.port = 0
        #: all, taken or not
        self.requests: list[web.BaseRequest] = []
        #: (host, body) -> how often
        self.received: Counter[tuple[str, bytes]] = Counter()
        self._arrived = asyncio.Condition()

    def url(self, address: str = "127.0.0.1", path: str = "/inbox") -> str:
        return f"http://{address}:{self.port}{path}"

    @property
    def ids(self) -> Counter[tuple[str, str]]:
        """(host, activity id) -> how often."""
        found: Counter[tuple[str, str]] = Counter()
        for (host, body), count in self.received.items():
            found[host, json.loads(body)["id"]] += count
        return found

    async def wait_for(self, distinct: int, patience: float = 60.0) -> None:
        """Until so many distinct (host, body) have arrived."""
        async with asyncio.timeout(patience), self._arrived:
            await self._arrived.wait_for(lambda: len(self.received) >= distinct)

    async def __aenter__(self) -> InboxServer:
        app = web.Application(client_max_size=4 * 1024 * 1024)
        app.router.add_post("/{path:.*}", self._receive)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        for address in self.addresses:
            await web.TCPSite(self._runner, address, self.port).start()
            self.port = self.port or self._runner.addresses[0][1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runner.cleanup()

    async def _receive(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.requests.append(request)
        host = request.host.rsplit(":", 1)[0]
        answer = await self.answer(host, body)
        if 200 <= answer.status < 300:
            async with self._arrived:
                self.received[host, body] += 1
                self._arrived.notify_all()
        return answer
