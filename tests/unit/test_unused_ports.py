from __future__ import annotations

import socket

import pytest
from servers import unused_ports as module
from servers.unused_ports import unused_port, unused_ports

BUS = 10_000


def test_no_port_is_given_twice_nor_is_one_that_a_system_gives_to_who_asks_for_any() -> None:
    given = [*unused_ports(20), *(unused_port() for _ in range(20))]
    assert len(set(given)) == 40
    assert max(given) + BUS < 32_768


@pytest.mark.parametrize("above", [0, BUS])
def test_a_port_that_somebody_has_is_passed_over(above: int, monkeypatch: pytest.MonkeyPatch) -> None:
    port = unused_port()
    turn = module._PORTS.index(port)
    monkeypatch.setattr(module, "_turns", iter([turn, turn, turn + 1]))
    assert unused_port() == port
    with socket.create_server(("127.0.0.1", port + above)):
        assert unused_port() != port


def test_where_none_is_free_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_unused", lambda _: False)
    with pytest.raises(OSError, match="no 3 are free"):
        unused_ports(3)
