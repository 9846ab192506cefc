"""Connections to hosts: name, address, TCP, TLS, under one deadline, to an address that the policy allows."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
import time
from collections import OrderedDict
from contextlib import suppress
from functools import partial
from ipaddress import ip_address
from typing import Any, Final, NamedTuple

from aiohappyeyeballs import AddrInfoType, start_connection

from fedsvc.config import Settings
from fedsvc.domain.classify import TransportError
from fedsvc.worker.addresses import AddressPolicy, AddressRefused
from fedsvc.worker.connection import InboxConnection
from fedsvc.worker.resolver import NameNotFound, OutOfFiles, PolicyResolver

#: share of the connect timeout that a name lookup may take
_LOOKUP_SHARE: Final = 0.8
#: seconds until the next address of a name is tried beside the one before (RFC 8305)
_NEXT_ADDRESS_S: Final = 0.25
#: what is wrong with this process or machine, and tells nothing of a host
_OURS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
#: seconds that a remote may take to say goodbye
_GOODBYE_S: Final = 2.0


class Origin(NamedTuple):
    """Whom a connection leads to."""

    scheme: str
    #: without brackets if it is an IPv6 address
    host: str
    port: int


class DialFailed(Exception):
    """There is no connection, and why."""

    def __init__(self, kind: TransportError, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail


class Dialer:
    """Belongs to one event loop; `close` after use."""

    def __init__(self, settings: Settings, context: ResumingContext) -> None:
        self._timeout = settings.connect_timeout
        self._policy = AddressPolicy(settings.allowed_cidrs, settings.allowed_ports, settings.allow_http)
        self._resolver = PolicyResolver(self._policy, settings.connect_timeout * _LOOKUP_SHARE)
        self._context = context

    async def close(self) -> None:
        await self._resolver.close()

    async def dial(self, origin: Origin, ends: float) -> InboxConnection:
        """Raises DialFailed, or TimeoutError at `ends` (seconds, the loop's clock)."""
        connect_by = asyncio.get_running_loop().time() + self._timeout
        try:
            async with asyncio.timeout_at(min(connect_by, ends)):
                addresses = await self._addresses(origin)
                return await self._speak(origin, await self._connect(addresses))
        except TimeoutError:
            if ends < connect_by:
                raise
            raise DialFailed(TransportError.CONNECT_TIMEOUT, "connect timeout") from None

    def keep_session(self, origin: Origin, connection: InboxConnection) -> None:
        """What its remote gave to resume the TLS session with: the next handshake costs both half."""
        if origin.scheme == "https":
            self._context.keep(origin.host, connection.ssl_object)

    async def _addresses(self, origin: Origin) -> list[AddrInfoType]:
        with suppress(ValueError):
            return [_info(str(ip_address(origin.host)), origin.port)]
        try:
            found = await self._resolver.resolve(origin.host, origin.port)
        except AddressRefused as error:
            raise DialFailed(TransportError.ADDRESS_REFUSED, str(error)) from None
        except NameNotFound as error:
            raise DialFailed(TransportError.NXDOMAIN, str(error)) from None
        except OutOfFiles as error:
            raise DialFailed(TransportError.WORKER, str(error)) from None
        except OSError as error:
            raise DialFailed(TransportError.DNS, str(error)) from None
        return [_info(address, origin.port) for address in found]

    async def _connect(self, addresses: list[AddrInfoType]) -> socket.socket:
        try:
            return await start_connection(
                addresses,
                happy_eyeballs_delay=_NEXT_ADDRESS_S,
                interleave=1,
                socket_factory=self._socket,
            )
        except AddressRefused as error:
            raise DialFailed(TransportError.ADDRESS_REFUSED, str(error)) from None
        except OSError as error:
            kind = TransportError.WORKER if error.errno in _OURS else TransportError.CONNECT
            raise DialFailed(kind, str(error)) from None

    def _socket(self, address: AddrInfoType) -> socket.socket:
        """Every connection begins here: what is connected to is what was checked."""
        family, kind, protocol, _, where = address
        self._policy.check(str(where[0]), int(where[1]))
        return socket.socket(family, kind, protocol)

    async def _speak(self, origin: Origin, connected: socket.socket) -> InboxConnection:
        secure: dict[str, Any] = {}
        if origin.scheme == "https":
            secure = {
                "ssl": self._context,
                "server_hostname": origin.host,
                "ssl_shutdown_timeout": _GOODBYE_S,
            }
        connection = None
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                partial(InboxConnection, connected), sock=connected, **secure
            )
        except ssl.SSLError as error:
            raise DialFailed(TransportError.TLS, str(error)) from None
        except ConnectionError:
            raise DialFailed(TransportError.TLS, "closed during the TLS handshake") from None
        except OSError as error:
            raise DialFailed(TransportError.CONNECT, str(error)) from None
        finally:
            if connection is None:
                # Its file is the event loop's by now, which goes on reading by its number until it has closed
                # it itself: closed here, the number might be that of somebody else's connection.
                with suppress(OSError):
                    connected.shutdown(socket.SHUT_RDWR)
        return connection


class ResumingContext(ssl.SSLContext):
    """Verifies as ssl.create_default_context does, and resumes sessions with hosts it has met (RFC 8446
    section 2.2). The event loop makes TLS connections by `wrap_bio`, which is where a session comes in."""

    #: hosts whose session is remembered
    HOSTS: Final = 10_000
    #: seconds after which a certificate is looked at again, however many sessions came of it
    LIFETIME_S: Final = 3600.0

    _sessions: OrderedDict[str, tuple[ssl.SSLSession, float]]

    @classmethod
    def trusting(cls, ca_file: str) -> ResumingContext:
        """The system's authorities, and those of a PEM file. Blocks: it reads the whole store. Raises OSError
        if the file cannot be read, ssl.SSLError if it holds no certificate."""
        context = cls(ssl.PROTOCOL_TLS_CLIENT)
        context._sessions = OrderedDict()
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if ca_file:
            context.load_verify_locations(cafile=ca_file)
        context.set_alpn_protocols(["http/1.1"])
        context.hostname_checks_common_name = False  # RFC 9525: the alternative names alone tell who it is
        return context

    def keep(self, host: str, connection: Any) -> None:
        """The session of a TLS connection; None for one that has ended."""
        session = connection.session if connection is not None else None
        if session is not None and session.has_ticket:
            until = time.monotonic() + self.LIFETIME_S
            if connection.session_reused:  # the certificate was not shown anew
                until = min(until, self._sessions.get(host, (None, 0.0))[1])
            self._sessions[host] = (session, until)
            self._sessions.move_to_end(host)
            if len(self._sessions) > self.HOSTS:
                self._sessions.popitem(last=False)

    def wrap_bio(self, *args: Any, **options: Any) -> ssl.SSLObject:
        """As the base class's, with the session of `server_hostname` if there is one."""
        host = options.get("server_hostname")
        session, until = self._sessions.get(host, (None, 0.0)) if host else (None, 0.0)
        made = super().wrap_bio(*args, **options)
        if session is not None and time.monotonic() < until:
            with suppress(ValueError):  # of another context
                made.session = session
        return made


def _info(address: str, port: int) -> AddrInfoType:
    if ":" in address:
        return socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port, 0, 0)
    return socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port)
