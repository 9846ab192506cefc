"""Servers on loopback that do whatever a test wants, byte for byte, and the deliverer that meets them."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from fedsvc.config import Settings
from fedsvc.domain.keys import PrivateKey, load_private_key
from fedsvc.domain.message import Message
from fedsvc.worker.deliverer import AttemptResult, Deliverer
from fedsvc.worker.signer import Signer

PRIVATE = Ed25519PrivateKey.generate()
KEY = load_private_key(
    PRIVATE.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
)
KEY_ID = "https://me.example/u/x#main-key"
BODY = b'{"id":"https://me.example/activities/1","type":"Like"}'
ACCEPTED = b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n"
#: seconds that a test waits for what must come at once
PATIENCE = 10.0

Act = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
#: what a server does with one request: bytes to send, or a whole behaviour; None ends the connection
Item = bytes | Act | None


def message_of(body: bytes, key: PrivateKey = KEY) -> Message:
    return Message(
        body=body,
        activity_id="https://me.example/activities/1",
        activity_type="Like",
        actor="https://me.example/u/x",
        key_id=KEY_ID,
        key_name=key.fingerprint,
        origin="me.example",
        digest=Message.digest_of(body),
    )


MESSAGE = message_of(BODY)


@asynccontextmanager
async def delivering(**changes: Any) -> AsyncIterator[Deliverer]:
    """Plain http to 127.0.0.0/8 is allowed, unless changed."""
    values: dict[str, Any] = {
        "allow_http": True,
        "allowed_cidrs": "127.0.0.0/8",
        "delivery_timeout": 5.0,
    } | changes
    signer = Signer(1, 2)
    deliverer = Deliverer(Settings.from_environment({}, **values), signer)
    await deliverer.start()
    try:
        yield deliverer
    finally:
        await deliverer.close()
        signer.close()


async def deliver(deliverer: Deliverer, url: str, message: Message = MESSAGE) -> AttemptResult:
    return await deliverer.deliver(message, url, KEY)


class Got(NamedTuple):
    """A request."""

    head: bytes
    body: bytes

    @property
    def headers(self) -> dict[str, str]:
        """By name, in lower case."""
        lines = self.head.decode("latin-1").split("\r\n")[1:-2]
        return {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}


class Remote:
    """Reads requests and does with each what the next item of `script` says; the last is repeated."""

    def __init__(self, script: tuple[Item, ...]) -> None:
        self.script = list(script)
        self.got: list[Got] = []
        self.connections = 0
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/inbox"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        while True:
            await self.read(reader)
            item = self.script.pop(0) if len(self.script) > 1 else self.script[0]
            if item is None:
                return
            if isinstance(item, bytes):
                writer.write(item)
                await writer.drain()
            else:
                await item(reader, writer)

    async def read(self, reader: asyncio.StreamReader) -> None:
        got = Got(await reader.readuntil(b"\r\n\r\n"), b"")
        body = await reader.readexactly(int(got.headers["content-length"]))
        self.got.append(got._replace(body=body))


@asynccontextmanager
async def accepting(act: Act, *addresses: str, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """A server on one port of `addresses` (127.0.0.1) that does `act` with each connection; yields the
    port. A connection ends with its act, and all of them at exit."""
    acts: set[asyncio.Task[None]] = set()

    async def whole(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await act(reader, writer)
        except (asyncio.IncompleteReadError, OSError):
            pass  # it has gone
        finally:
            writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(whole(reader, writer))
        acts.add(task)
        task.add_done_callback(acts.discard)

    servers = []
    port = 0
    for address in addresses or ("127.0.0.1",):
        server = await asyncio.start_server(accept, address, port, ssl=tls)
        servers.append(server)
        port = server.sockets[0].getsockname()[1]
    try:
        yield port
    finally:
        for server in servers:
            server.close()
        for task in list(acts):
            task.cancel()
        await asyncio.gather(*acts, return_exceptions=True)
        for server in servers:
            await server.wait_closed()


@asynccontextmanager
async def serving(
    *script: Item, tls: ssl.SSLContext | None = None, kind: type[Remote] = Remote
) -> AsyncIterator[Remote]:
    remote = kind(script)
    async with accepting(remote.serve, tls=tls) as port:
        remote.port = port
        yield remote


def answering(status: int, body: bytes = b"", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} x", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def once(
    *script: Item, message: Message = MESSAGE, key: PrivateKey = KEY, **changes: Any
) -> tuple[AttemptResult, Remote]:
    """One delivery to a server that does what `script` says, and that server."""
    async with serving(*script) as remote, delivering(**changes) as deliverer:
        return await deliverer.deliver(message, remote.url, key), remote


def open_files() -> int:
    """How many files and sockets this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    raw: socket.socket = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # an RST, not a FIN
    writer.transport.abort()


async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


def pour(first: bytes, again: bytes) -> Act:
    """Sends `first`, then `again` and again, as fast as it is taken."""
    block = again * (65_536 // len(again) + 1)

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(first)
        while not writer.is_closing():
            writer.write(block)
            await writer.drain()

    return act


def drip(first: bytes, again: bytes) -> Act:
    """Sends `first`, then a byte of `again` every 10 ms, over and over."""

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(first)
        at = 0
        while not writer.is_closing():
            writer.write(again[at : at + 1])
            at = (at + 1) % len(again)
            await asyncio.sleep(0.01)

    return act
