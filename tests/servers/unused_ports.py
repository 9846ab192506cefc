"""Ports on loopback for servers that are told one before they run, or come back on the one they had."""

from __future__ import annotations

import itertools
import os
import socket

#: Below what a system gives to those who ask for any (Linux: from 32,768): from there, a port that was free
#: is another test's a moment later, or while its server is away. There is room for the bus of each node of a
#: cluster too, 10,000 above.
_PORTS = range(12_000, 22_000)
_BUS = 10_000

#: processes that run beside each other begin elsewhere, and none gives a port twice
_turns = itertools.count(os.getpid() * 101)


def unused_ports(count: int) -> list[int]:
    """Nobody listens on them, nor on the ports of their buses."""
    found: list[int] = []
    for turn in itertools.islice(_turns, len(_PORTS)):
        port = _PORTS[turn % len(_PORTS)]
        if _unused(port) and _unused(port + _BUS):
            found.append(port)
            if len(found) == count:
                return found
    raise OSError(f"of ports {_PORTS.start} to {_PORTS.stop - 1} no {count} are free")


def unused_port() -> int:
    return unused_ports(1)[0]


def _unused(port: int) -> bool:
    with socket.socket() as probe:
        # as servers do: what was closed a moment ago is in nobody's way
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
