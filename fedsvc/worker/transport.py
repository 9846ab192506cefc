"""One POST over a kept-alive connection, within limits, to an address that the policy allows.

Whatever goes wrong becomes an `Answer` with a `TransportError`; only cancellation (which is how the
caller's deadline arrives) and defects are raised.
"""

from __future__ import annotations

import asyncio
import io
import socket
import ssl
from contextlib import AsyncExitStack
from contextvars import ContextVar
from functools import lru_cache, partial
from typing import Any, Final

from aiohttp import (
    AddrInfoType,
    ClientConnectionError,
    ClientConnectorDNSError,
    ClientConnectorError,
    ClientError,
    ClientOSError,
    ClientResponse,
    ClientResponseError,
    ClientSession,
    ClientSSLError,
    ClientTimeout,
    ConnectionTimeoutError,
    DummyCookieJar,
    InvalidURL,
    ServerDisconnectedError,
    TCPConnector,
)
from yarl import URL

from fedsvc.config import Settings
from fedsvc.domain.classify import Answer, TransportError
from fedsvc.worker.addresses import AddressPolicy, AddressRefused
from fedsvc.worker.connection import BODY_BYTES, AnswerConnection
from fedsvc.worker.resolver import NameNotFound, PolicyResolver

#: seconds that a body may take once its head, which decides, is there
BODY_WAIT_S: Final = 3.0
#: seconds for which an idle connection is kept; most servers close theirs after 60 or more
KEEP_ALIVE_S: Final = 30.0

_LINE_BYTES: Final = 8190
_HEADERS: Final = 128
#: share of the connect timeout that a name lookup may take
_LOOKUP_SHARE: Final = 0.8
#: aiohttp warns of raw bytes beyond this, since it writes them in one go
_ONE_WRITE_BYTES: Final = 2**20
#: what becomes of a connection that was there before the connector had done with it
_LOST: Final = (ConnectionResetError, ConnectionAbortedError, BrokenPipeError)


class Exchange:
    """What is known so far of one POST; tells it also when the deadline ends it half-way."""

    __slots__ = ("answer", "connections")

    def __init__(self) -> None:
        #: set as soon as the status is known, while the body still comes in
        self.answer: Answer | None = None
        #: connections begun for it; none when a kept one was used
        self.connections = 0


_exchange: ContextVar[Exchange] = ContextVar("exchange")


class Transport:
    """Belongs to one event loop. `open` before use, `close` after."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._policy = AddressPolicy(settings.allowed_cidrs, settings.allowed_ports, settings.allow_http)
        self._opened = AsyncExitStack()

    async def open(self) -> None:
        """Raises OSError if the CA file cannot be read, ssl.SSLError if it holds no certificate."""
        settings = self._settings
        # it reads the whole trust store from disk
        context = await asyncio.to_thread(_ssl_context, settings.ca_file)
        self._resolver = PolicyResolver(self._policy, settings.connect_timeout * _LOOKUP_SHARE)
        self._opened.push_async_callback(self._resolver.close)
        self._kept = self._session(context, keep_alive=True)
        self._opened.push_async_callback(self._kept.close)
        self._fresh = self._session(context, keep_alive=False)
        self._opened.push_async_callback(self._fresh.close)

    async def close(self) -> None:
        """Drops all connections, used ones too. Harmless if it is not open."""
        await self._opened.aclose()

    async def post(
        self, exchange: Exchange, url: URL, headers: dict[str, str], body: bytes, deadline: asyncio.Timeout
    ) -> Answer:
        """The answer to one POST. Once the status is there, `deadline` is brought forward to
        BODY_WAIT_S at the latest.

        A server may close an idle connection just when we use it. Such a reset, before any answer on a
        kept connection, is followed by one more try at once on a new connection: an activity is known
        by its id, so that receiving it twice does no harm, and the host is not to blame.
        """
        _exchange.set(exchange)
        exchange.connections = 0
        try:
            return await self._post(self._kept, exchange, url, headers, body, deadline)
        except (ServerDisconnectedError, ClientOSError) as error:
            if exchange.connections or isinstance(error, ClientConnectorError):
                return _failure(error)
        except (ClientError, OSError) as error:
            return _failure(error)
        try:
            return await self._post(self._fresh, exchange, url, headers, body, deadline)
        except (ClientError, OSError) as error:
            return _failure(error)

    async def _post(
        self,
        session: ClientSession,
        exchange: Exchange,
        url: URL,
        headers: dict[str, str],
        body: bytes,
        deadline: asyncio.Timeout,
    ) -> Answer:
        data = body if len(body) <= _ONE_WRITE_BYTES else io.BytesIO(body)
        response = await session.post(url, data=data, headers=headers, allow_redirects=False)
        try:
            content = response.content
            if content.is_eof():
                # the usual case: the whole answer came in one read
                return _answer(response, content.read_nowait(BODY_BYTES))
            exchange.answer = _answer(response, b"")
            if response.status in (307, 308):
                return exchange.answer  # followed, whatever its body says
            return await _with_body(response, exchange, deadline)
        finally:
            if not response.content.at_eof():
                response.close()

    def _session(self, context: ssl.SSLContext, *, keep_alive: bool) -> ClientSession:
        settings = self._settings
        connector = _Connector(
            ssl=context,
            resolver=self._resolver,
            use_dns_cache=False,  # the resolver has one
            limit=0,  # how many there are is decided where deliveries are taken
            force_close=not keep_alive,
            socket_factory=self._socket,
            keepalive_timeout=KEEP_ALIVE_S if keep_alive else None,
        )
        return ClientSession(
            connector=connector,
            headers={
                "User-Agent": settings.user_agent,
                "Accept": "*/*",
                "Accept-Encoding": "identity",
            },
            cookie_jar=DummyCookieJar(),
            trust_env=False,
            auto_decompress=False,
            timeout=ClientTimeout(total=None, connect=settings.connect_timeout),
            read_bufsize=BODY_BYTES,
            max_line_size=_LINE_BYTES,
            max_field_size=_LINE_BYTES,
            max_headers=_HEADERS,
        )

    def _socket(self, address: AddrInfoType) -> socket.socket:
        """Every connection begins here: also those to IP addresses in URLs, which no resolver sees."""
        family, kind, protocol, _, where = address
        self._policy.check(where[0], where[1])
        _exchange.get().connections += 1
        return socket.socket(family, kind, protocol)


class _Connector(TCPConnector):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        factory: Any = partial(AnswerConnection, loop=asyncio.get_running_loop())
        self._factory = factory


def _ssl_context(ca_file: str) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if ca_file:
        context.load_verify_locations(cafile=ca_file)
    context.set_alpn_protocols(["http/1.1"])
    context.hostname_checks_common_name = False  # RFC 9525: the alternative names alone tell who it is
    return context


async def _with_body(response: ClientResponse, exchange: Exchange, deadline: asyncio.Timeout) -> Answer:
    """Read the rest, to know what it says and to keep the connection; the status stands without it."""
    body_by = asyncio.get_running_loop().time() + BODY_WAIT_S
    ends = deadline.when()
    deadline.reschedule(body_by if ends is None else min(ends, body_by))
    body = bytearray()
    try:
        while len(body) < BODY_BYTES and (chunk := await response.content.readany()):
            body += chunk
            exchange.answer = _answer(response, bytes(body[:BODY_BYTES]))
    except ClientError:
        pass  # cut off
    # a second request may follow, in another form of signature: it has the whole time again
    deadline.reschedule(ends)
    return exchange.answer or _answer(response, b"")


@lru_cache(maxsize=128)
def _plain(status: int) -> Answer:
    return Answer(status)


def _answer(response: ClientResponse, body: bytes) -> Answer:
    if not body and 200 <= response.status <= 299:
        return _plain(response.status)
    headers = response.headers
    return Answer(
        response.status,
        content_type=headers.get("Content-Type", ""),
        retry_after=headers.get("Retry-After", ""),
        location=headers.get("Location", ""),
        date=headers.get("Date", ""),
        accept_signature=", ".join(headers.getall("Accept-Signature", ())),
        body_head=body,
    )


def _failure(error: ClientError | OSError) -> Answer:
    return Answer(error=_kind(error), detail=_detail(error))


def _kind(error: ClientError | OSError) -> TransportError:
    cause = error.os_error if isinstance(error, ClientConnectorError) else error
    match error:
        case _ if isinstance(cause, AddressRefused):
            return TransportError.ADDRESS_REFUSED
        case InvalidURL():  # odd spellings of IP addresses
            return TransportError.ADDRESS_REFUSED
        case ConnectionTimeoutError():
            return TransportError.CONNECT_TIMEOUT
        case ClientConnectorDNSError():
            return TransportError.NXDOMAIN if isinstance(cause, NameNotFound) else TransportError.DNS
        case ClientSSLError():
            return TransportError.TLS
        case ClientConnectorError() if isinstance(cause, _LOST):
            return TransportError.TLS
        case ClientConnectorError():
            return TransportError.CONNECT
        case ServerDisconnectedError() | ClientOSError():
            return TransportError.RESET
        case ClientResponseError():
            return TransportError.PROTOCOL
        case ClientConnectionError() | OSError():
            return TransportError.RESET
        case _:
            return TransportError.PROTOCOL


def _detail(error: ClientError | OSError) -> str:
    match error:
        case ClientConnectorError() if isinstance(error.os_error, _LOST):
            return "closed during the TLS handshake"
        case ClientConnectorError():
            return str(error.os_error)
        case ClientResponseError():
            return error.message
        case ConnectionTimeoutError():
            return "connect timeout"
        case ServerDisconnectedError():
            return "closed without an answer"
        case _:
            return str(error) or type(error).__name__
