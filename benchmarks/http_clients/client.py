"""What each HTTP client of the comparison has to do."""

from __future__ import annotations

import ssl
from typing import Final, NamedTuple, Protocol

from fedsvc import __version__
from fedsvc.domain.signatures import Target

#: what every request says beside the headers of its signature; a worker says the same
ALWAYS: Final = {"User-Agent": f"fedsvc/{__version__}", "Accept": "*/*", "Accept-Encoding": "identity"}


class Inbox(NamedTuple):
    host: str
    port: int
    url: str
    target: Target

    @classmethod
    def of(cls, host: str, port: int) -> Inbox:
        url = f"https://{host}:{port}/inbox"
        return cls(host, port, url, Target.of(url))


class Client(Protocol):
    """Belongs to one event loop; opened before use, closed after."""

    async def open(self, authority: str) -> None:
        """`authority`: PEM file of the authority that vouches for all inboxes."""

    async def post(self, inbox: Inbox, headers: dict[str, str], body: bytes) -> int:
        """The status of the answer, once all of it is there. `headers`: those of `MessageForm.headers`."""

    async def close(self) -> None: ...


def http2_context(authority: str) -> ssl.SSLContext:
    """Verifies as all others do, and offers HTTP/2 alone."""
    context = ssl.create_default_context(cafile=authority)
    context.set_alpn_protocols(["h2"])
    return context
