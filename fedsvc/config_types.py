"""What settings are made of: addresses, networks, ports, and how they are written."""

from __future__ import annotations

import re
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Annotated, Final, Literal, NamedTuple

from pydantic import BeforeValidator, Field, SecretStr

#: seconds of the longest duration that may be set, ten years: what is longer is a typing error, and times
#: made of it would not fit where they are kept
LONGEST: Final = 315_360_000

_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")


class Address(NamedTuple):
    """Where to listen or connect: HOST:PORT, IPv6 hosts in brackets."""

    host: str
    port: int

    @property
    def local(self) -> bool:
        """Whether nobody but this machine reaches it."""
        try:
            return ip_address(self.host.partition("%")[0]).is_loopback
        except ValueError:
            return self.host == "localhost"

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(value: object) -> object:
    if not isinstance(value, str):
        return value
    host, colon, port = value.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError("expected HOST:PORT")
    if host.startswith("[") != host.endswith("]"):
        raise ValueError("expected HOST:PORT, with an IPv6 host in brackets")
    return Address(host.strip("[]"), int(port))


def _optional_address(value: object) -> object:
    return None if value == "" else parse_address(value)


def _split(value: object) -> object:
    if isinstance(value, str):
        return [part for part in value.replace(",", " ").split() if part]
    return value


def _networks(value: object) -> object:
    parts = _split(value)
    if isinstance(parts, (list, tuple)):
        return tuple(ip_network(p) if isinstance(p, str) else p for p in parts)
    return parts


def _ports(value: object) -> object:
    parts = _split(value)
    if isinstance(parts, (list, tuple, set, frozenset)):
        ports = frozenset(int(p) if str(p).isascii() and str(p).isdigit() else 0 for p in parts)
        if not all(1 <= port <= 65535 for port in ports):
            raise ValueError("expected ports, 1 to 65535")
        return ports
    return parts


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _names(value: object) -> object:
    parts = _split(value)
    if not isinstance(parts, (list, tuple)):
        return parts
    names = tuple(str(part).lower().rstrip(".") for part in parts)
    for name in names:
        if not _NAME.fullmatch(name):
            raise ValueError("expected names of hosts, without scheme or port")
    return names


Listen = Annotated[Address, BeforeValidator(parse_address)]
#: None where nothing listens, written as nothing
OptionalListen = Annotated[Address | None, BeforeValidator(_optional_address)]
Names = Annotated[tuple[str, ...], BeforeValidator(_names)]
Networks = Annotated[tuple[IPv4Network | IPv6Network, ...], BeforeValidator(_networks)]
Ports = Annotated[frozenset[int], BeforeValidator(_ports)]
Seconds = Annotated[float, Field(le=LONGEST)]
WholeSeconds = Annotated[int, Field(le=LONGEST)]
LogLevel = Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower)]


def as_text(value: object) -> str:
    """How a variable says it (secrets in clear)."""
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, (tuple, frozenset)) and not isinstance(value, Address):
        return ",".join(sorted(map(str, value)))
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)
