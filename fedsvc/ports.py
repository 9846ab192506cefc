"""Whether ports are free, asked before anything starts: gRPC says it in a line of its own, when half of us
would run."""

from __future__ import annotations

import errno
import socket

from fedsvc.config import Settings
from fedsvc.config_types import Address
from fedsvc.errors import ConfigurationError


def check_ports(settings: Settings) -> None:
    """Raises ConfigurationError if a port that the server listens on is taken."""
    _check_free("FEDSVC_LISTEN", settings.listen)
    _check_free("FEDSVC_HTTP_LISTEN", settings.http_listen)
    if settings.health_listen is not None:
        _check_free("FEDSVC_HEALTH_LISTEN", settings.health_listen)


def _check_free(setting: str, address: Address) -> None:
    # All else that may be wrong with an address shows when we listen.
    if not address.port:
        return
    try:
        places = socket.getaddrinfo(*address, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        return
    if places and all(_taken(family, place) for family, _, _, _, place in places):
        raise ConfigurationError(setting, f"{address} is taken")


def _taken(family: int, place: object) -> bool:
    try:
        with socket.socket(family, socket.SOCK_STREAM) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(place)  # type: ignore[arg-type]
    except OSError as error:
        return error.errno == errno.EADDRINUSE
    return False
