"""Somebody who looks at the dashboard, without what a browser does of its own accord."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from fedsvc.config import Settings
from fedsvc.server.tokens import new_token
from servers.front import Front

TOKENS = {name: new_token() for name in ("all", "deliver", "operate", "keys", "one")}
PAGES = (
    "/", "/hosts", "/activities", "/dead", "/operations", "/schedules", "/schedules/new", "/keys", "/audit",
)  # fmt: skip


@dataclass
class Browser:
    """One with cookies, that follows no redirects by itself."""

    server: Front
    http: aiohttp.ClientSession

    def url(self, path: str) -> str:
        return f"http://{self.server.http}{path}"

    async def get(self, path: str, **headers: str) -> aiohttp.ClientResponse:
        response = await self.http.get(self.url(path), headers=headers, allow_redirects=False)
        await response.read()
        return response

    async def text(self, path: str) -> str:
        response = await self.get(path)
        assert response.status == 200, (path, response.status, await response.text())
        return await response.text()

    async def form_value(self, path: str) -> str:
        found = re.search(r'name="form" value="([^"]+)"', await (await self.get(path)).text())
        assert found
        return found[1]

    async def send(self, path: str, page: str = "/sign-in", **fields: Any) -> aiohttp.ClientResponse:
        """A form of that page."""
        headers = fields.pop("headers", {})
        data = {"form": await self.form_value(page)} | fields
        response = await self.http.post(self.url(path), data=data, headers=headers, allow_redirects=False)
        await response.read()
        return response

    async def sign_in(self, who: str) -> None:
        response = await self.send("/sign-in", token=TOKENS[who], next="/hosts")
        assert (response.status, response.headers["Location"]) == (303, "/hosts")


@asynccontextmanager
async def browsing(server: Front) -> AsyncIterator[Browser]:
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as http:
        yield Browser(server, http)


def chosen(environment: dict[str, str], **more: str) -> Settings:
    return Settings.from_environment(environment | {"FEDSVC_PARTITIONS": "4"} | more)
