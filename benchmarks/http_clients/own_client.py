"""The worker's own transport, with its limits and deadlines, which the others do without."""

from __future__ import annotations

import asyncio
from typing import Final

from benchmarks.http_clients.client import Inbox
from fedsvc.config import Settings
from fedsvc.worker.dialer import Origin
from fedsvc.worker.transport import Transport

#: seconds for one POST
_PATIENCE: Final = 30.0


class OwnClient:
    async def open(self, authority: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport = Transport(
            Settings.model_validate({"ca_file": authority, "allowed_cidrs": "127.0.0.0/8"})
        )
        self._origins: dict[str, Origin] = {}
        await self._transport.open()

    async def post(self, inbox: Inbox, headers: dict[str, str], body: bytes) -> int:
        """Raises RuntimeError if there is no answer."""
        origin = self._origins.get(inbox.host)
        if origin is None:
            origin = self._origins[inbox.host] = Origin("https", inbox.host, inbox.port)
        ends = self._loop.time() + _PATIENCE
        answer = await self._transport.post(origin, inbox.target.path, headers, body, ends)
        if answer.status is None:
            raise RuntimeError(f"{inbox.url}: {answer.error} {answer.detail}")
        return answer.status

    async def close(self) -> None:
        await self._transport.close()


make = OwnClient
