"""aiohttp's session, as the bare loop and all peers use it."""

from __future__ import annotations

import ssl

import aiohttp
from yarl import URL

from benchmarks.http_clients.client import Inbox
from benchmarks.sending import session


class AiohttpClient:
    """Parses each URL once, as the bare loop does."""

    def __init__(self) -> None:
        self._urls: dict[str, URL] = {}

    async def open(self, authority: str) -> None:
        self._session: aiohttp.ClientSession = session(ssl.create_default_context(cafile=authority))

    async def post(self, inbox: Inbox, headers: dict[str, str], body: bytes) -> int:
        url = self._urls.get(inbox.url)
        if url is None:
            url = self._urls[inbox.url] = URL(inbox.url, encoded=True)
        response = await self._session.post(url, data=body, headers=headers, allow_redirects=False)
        if not response.content.is_eof():
            await response.read()
        return response.status

    async def close(self) -> None:
        await self._session.close()


make = AiohttpClient
