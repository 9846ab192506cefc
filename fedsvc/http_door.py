"""Listens for HTTP: figures, health and pages. Nobody holds on for ever, or takes all connections."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from fedsvc.config_types import Address
from fedsvc.errors import ConfigurationError

#: connections at a time, of one process; and of these from one address, so that who comes from another, and
#: asks for our health, finds room
MOST: Final = 512
MOST_OF_ONE: Final = 384
#: seconds for a request's head to come, and for which an idle connection is kept; proxies keep theirs for 60
PATIENCE_S: Final = 75.0
#: seconds that requests under way get when the process stops
_GRACE_S: Final = 2.0

_log = logging.getLogger("fedsvc.http")


class _BadRequests(logging.Filter):
    """Drops what aiohttp logs, with a traceback, of what is no HTTP: anybody could fill the log."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, HttpProcessingError)


_log.addFilter(_BadRequests())


class _Door(asyncio.Protocol):
    """A connection that has just come: it becomes one of `server`'s, or is closed if it is one too many."""

    def __init__(self, server: web.Server) -> None:
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self._is_one_too_many(transport):
            transport.close()
            return
        handler = self._server()
        transport.set_protocol(handler)
        handler.connection_made(transport)

    def _is_one_too_many(self, transport: asyncio.BaseTransport) -> bool:
        there = self._server.connections
        if MOST_OF_ONE <= len(there) < MOST:
            host = _host(transport)
            return sum(_host(handler.transport) == host for handler in there) >= MOST_OF_ONE
        return len(there) >= MOST


def _host(transport: asyncio.BaseTransport | None) -> str:
    """Where it comes from; empty if it has gone."""
    name = transport.get_extra_info("peername") if transport is not None else None
    return str(name[0]) if name else ""


class _Site(web.BaseSite):
    def __init__(self, runner: web.AppRunner, address: Address) -> None:
        super().__init__(runner)
        self._address = address

    @property
    def name(self) -> str:
        return f"http://{self._address}"

    async def start(self) -> None:
        await super().start()
        server = self._runner.server
        assert server is not None
        self._server = await asyncio.get_running_loop().create_server(
            lambda: _Door(server), self._address.host, self._address.port, backlog=MOST, reuse_address=True
        )


async def listen(app: web.Application, address: Address) -> tuple[web.AppRunner, Address]:
    """Serve `app`; returns what to clean up and where it listens. Raises ConfigurationError if it cannot."""
    runner = web.AppRunner(
        app,
        access_log=None,
        logger=_log,
        shutdown_timeout=_GRACE_S,
        keepalive_timeout=PATIENCE_S,
        auto_decompress=False,  # nobody sends us what is packed but to fill our memory
    )
    await runner.setup()
    try:
        await _Site(runner, address).start()
    except OSError as error:
        await runner.cleanup()
        problem = f"cannot listen on {address}: {error.strerror}"
        raise ConfigurationError("FEDSVC_HTTP_LISTEN", problem) from None
    return runner, Address(address.host, runner.addresses[0][1])
