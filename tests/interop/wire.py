"""Requests as they are on the wire: read from a socket by nothing but asyncio, changed, and sent again.

Servers are on loopback, with TLS, and stand for hosts of the fediverse: `names` says which for which, so
that what is signed and sent is what a real host would get, with its name and port.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from servers.certificates import authority, server_context

from fedsvc.worker.dialer import Dialer, Origin, _info

#: a host that is an address: of those for documentation, RFC 3849
ADDRESS = "2001:db8::5"
#: seconds for anything on loopback
PATIENCE = 30


class Request(NamedTuple):
    """A request, with its header fields in their order and spelling."""

    method: str
    target: str
    fields: tuple[tuple[str, str], ...]
    body: bytes

    @classmethod
    def parse(cls, head: bytes, body: bytes) -> Request:
        line, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
        method, target, version = line.split(" ")
        assert version == "HTTP/1.1"
        fields = tuple((name, value) for name, _, value in (field.partition(": ") for field in lines))
        return cls(method, target, fields, body)

    @property
    def raw(self) -> bytes:
        lines = [
            f"{self.method} {self.target} HTTP/1.1",
            *(f"{name}: {value}" for name, value in self.fields),
        ]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + self.body

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]

    def every(self, name: str) -> list[str]:
        return [value for field, value in self.fields if field.lower() == name.lower()]

    def get(self, name: str) -> str | None:
        """As RFC 9110 section 5.3 combines several; None if there is none."""
        return ", ".join(self.every(name)) or None

    def having(self, **values: str | None) -> Request:
        """With these fields instead of those of the same name; None takes one away. `_` stands for `-`."""
        changed = {name.replace("_", "-").lower(): value for name, value in values.items()}
        kept = [
            (name, changed.pop(name.lower(), value) if name.lower() in changed else value)
            for name, value in self.fields
        ]
        fields = [*kept, *((name.title(), value) for name, value in changed.items())]
        return self._replace(fields=tuple((name, value) for name, value in fields if value is not None))


class Answer(NamedTuple):
    status: int
    fields: tuple[tuple[str, str], ...] = ()
    body: bytes = b""


Judge = Callable[[Request], Answer]


def take_all(_: Request) -> Answer:
    return Answer(202)


class Recorder:
    """An inbox that writes down each request and answers as its judge does."""

    def __init__(self, judge: Judge = take_all) -> None:
        self.judge = judge
        self.port = 0
        self.requests: list[Request] = []

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            request = Request.parse(head, b"")
            request = request._replace(body=await reader.readexactly(int(request.get("Content-Length") or 0)))
            self.requests.append(request)
            status, fields, body = self.judge(request)
            lines = [f"HTTP/1.1 {status} x", *(f"{name}: {value}" for name, value in fields)]
            lines += [f"Content-Length: {len(body)}", "Connection: close", "", ""]
            writer.write("\r\n".join(lines).encode() + body)
            await writer.drain()
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()


@asynccontextmanager
async def recording(judge: Judge = take_all, hosts: tuple[str, ...] = ()) -> AsyncIterator[Recorder]:
    """An inbox at all of `hosts`, in whose names it has a certificate."""
    recorder = Recorder(judge)
    context = server_context(certificate(*hosts))
    server = await asyncio.start_server(recorder.converse, "127.0.0.1", 0, ssl=context)
    async with server:
        recorder.port = server.sockets[0].getsockname()[1]
        with names(dict.fromkeys(hosts, recorder.port)):
            yield recorder


@cache
def certificate(*hosts: str) -> Path:
    return authority().certify(*hosts)


@contextmanager
def names(ports: Mapping[str, int]) -> Iterator[None]:
    """Connections to these hosts, whatever their port, go to these ports of 127.0.0.1; others to where they
    went before, and in the end nowhere."""
    before = Dialer._addresses

    async def addresses(self: Any, origin: Origin) -> Any:
        if origin.host in ports:
            return [_info("127.0.0.1", ports[origin.host])]
        if getattr(before, "of_tests", False):
            return await before(self, origin)
        raise AssertionError(f"a connection to {origin.host} was begun")

    addresses.of_tests = True  # type: ignore[attr-defined]
    with mock.patch.object(Dialer, "_addresses", addresses):
        yield


async def send(request: Request, host: str, port: int) -> Answer:
    """Just these bytes, to the server on `port` that stands for `host`."""
    context = ssl.create_default_context(cafile=str(authority().file))
    async with asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=host)
        writer.write(request.having(Connection="close").raw)
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
    status, *lines = head.decode("latin-1").split("\r\n")
    fields = tuple((name, value) for name, _, value in (line.partition(": ") for line in lines))
    return Answer(int(status.split(" ")[1]), fields, body)
