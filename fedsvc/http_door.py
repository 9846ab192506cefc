"""Listens for HTTP: figures, health and pages. Nobody holds on for ever, or takes all connections."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from fedsvc.config_types import Address
from fedsvc.errors import ConfigurationError

#: connections at a time, of one process
MOST: Final = 512
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


class _Full(asyncio.Protocol):
    """A connection that is one too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


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

        def connection() -> asyncio.Protocol:
            return server() if len(server.connections) < MOST else _Full()

        self._server = await asyncio.get_running_loop().create_server(
            connection, self._address.host, self._address.port, backlog=MOST, reuse_address=True
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
