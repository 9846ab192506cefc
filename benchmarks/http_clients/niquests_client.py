"""niquests, a client with HTTP/2 that is kept: h2's state machine with HPACK in Rust, around a pool."""

from __future__ import annotations

from typing import Final

import niquests

from benchmarks.http_clients.client import ALWAYS, Inbox

#: hosts whose connection it keeps: more than there are
_HOSTS: Final = 2000


class NiquestsClient:
    async def open(self, authority: str) -> None:
        """One connection to a host, with nothing but HTTP/2, and without what the environment says."""
        self._session = niquests.AsyncSession(
            multiplexed=True,
            disable_http1=True,
            disable_http3=True,
            pool_connections=_HOSTS,
            pool_maxsize=1,
        )
        self._session.verify = authority
        self._session.trust_env = False
        self._session.headers.clear()
        self._session.headers.update(ALWAYS)

    async def post(self, inbox: Inbox, headers: dict[str, str], body: bytes) -> int:
        """Sends at once; the answer is waited for with those of all others on the connection."""
        response = await self._session.post(inbox.url, data=body, headers=headers, allow_redirects=False)
        await self._session.gather(response)
        return int(response.status_code)

    async def close(self) -> None:
        await self._session.close()


make = NiquestsClient
