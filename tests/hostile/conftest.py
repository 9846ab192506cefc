"""Every hostile test is guarded: nothing leaves the loopback, and bodies are not waited for long."""

from __future__ import annotations

import asyncio
from functools import lru_cache
from ipaddress import ip_address
from typing import Any

import pytest

from fedsvc.worker import transport
from fedsvc.worker.dialer import ResumingContext


class Connections(list[tuple[str, int]]):
    """Where the deliverer connected to, or tried to."""


@pytest.fixture(autouse=True)
def connected(monkeypatch: pytest.MonkeyPatch) -> Connections:
    """Every TCP connection that is begun in the event loop; one that would leave the loopback fails."""
    seen = Connections()
    connect = asyncio.selector_events.BaseSelectorEventLoop.sock_connect

    async def guarded(loop: Any, sock: Any, address: Any) -> None:
        seen.append((address[0], address[1]))
        if not ip_address(address[0]).is_loopback:
            raise AssertionError(f"a connection to {address[0]} was begun")
        await connect(loop, sock, address)

    monkeypatch.setattr(asyncio.selector_events.BaseSelectorEventLoop, "sock_connect", guarded)
    return seen


_trust = lru_cache(ResumingContext.trusting)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "BODY_WAIT_S", 0.3)
    monkeypatch.setattr(ResumingContext, "trusting", _trust)  # the trust store is read once
