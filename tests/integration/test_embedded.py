"""The embedded server of `fedsvc dev`: real ones, in directories of their own."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import threading
from pathlib import Path

import pytest
import redis

from fedsvc import embedded
from fedsvc.dev import key_file
from fedsvc.domain.keys import KeyCipher
from fedsvc.embedded import DataDir, EmbeddedFailed, EmbeddedServer
from fedsvc.errors import ConfigurationError


def client(server: EmbeddedServer) -> redis.Redis:
    return redis.Redis(unix_socket_path=server.socket, socket_timeout=5.0)


async def test_it_keeps_what_it_holds_over_a_stop_and_over_a_kill(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path)
    await server.start()
    with client(server) as redis_:
        redis_.set("kept", "1")
    await server.stop()
    loop = asyncio.get_running_loop()
    begun = loop.time()
    await server.start()
    # an old socket that refuses connections is no reason to wait
    assert loop.time() - begun < 3.0
    with client(server) as redis_:
        assert redis_.get("kept") == b"1"
        redis_.set("more", "2")
    address = server.url
    os.kill(server.pid, signal.SIGKILL)
    assert await server.ended() == -9
    await server.start()
    assert server.url == address
    with client(server) as redis_:
        assert redis_.get("more") == b"2"
        assert redis_.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
    await server.stop()
    assert await server.ended() == 0


async def test_a_server_that_was_left_behind_is_ended_first(tmp_path: Path) -> None:
    left, new = EmbeddedServer(tmp_path), EmbeddedServer(tmp_path)
    await left.start()
    with client(left) as redis_:
        redis_.set("kept", "1")
    await new.start()
    assert await left.ended() == 0
    with client(new) as redis_:
        assert redis_.get("kept") == b"1"
    await new.stop()


async def test_nobody_else_can_open_it_and_a_long_path_is_no_hindrance(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    server = EmbeddedServer(deep)
    await server.start()
    socket = Path(server.socket)
    assert not socket.is_relative_to(deep)
    for path in (socket, socket.parent, deep / "valkey"):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077
    await server.stop()
    assert not socket.parent.exists()


async def test_the_end_of_its_log_tells_why_it_does_not_start(tmp_path: Path) -> None:
    directory = tmp_path / "valkey" / "appendonlydir"
    directory.mkdir(parents=True)
    (directory / "appendonly.aof.manifest").write_text("nonsense\n")
    server = EmbeddedServer(tmp_path)
    with pytest.raises(EmbeddedFailed, match=r"does not start: .*manifest"):
        await server.start()
    await server.stop()


async def test_a_program_that_hangs_when_it_is_asked_its_version_keeps_nothing_else_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, find = [], embedded.find_server

    def asking() -> Path:
        asked.append(threading.current_thread())
        return find()

    monkeypatch.setattr(embedded, "find_server", asking)
    server = EmbeddedServer(tmp_path)
    await server.start()
    await server.stop()
    assert asked
    assert threading.current_thread() not in asked, "the loop's"


def test_without_any_binary_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(embedded, "find_spec", lambda _: None)
    with pytest.raises(EmbeddedFailed, match="no Valkey or Redis 7 on PATH"):
        embedded.find_server()


def test_a_data_directory_has_one_user_at_a_time(tmp_path: Path) -> None:
    first, second = DataDir(tmp_path), DataDir(tmp_path)
    first.open()
    with pytest.raises(ConfigurationError, match="in use"):
        second.open()
    first.close()
    second.open()
    second.close()


def test_the_key_file_is_made_once_for_nobody_else_and_refused_when_others_can_read_it(
    tmp_path: Path,
) -> None:
    (tmp_path / "key-encryption-keys.new").write_text("half of a k")  # of a start that was killed
    path = key_file(tmp_path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    KeyCipher.from_setting(path.read_text())
    made = path.read_bytes()
    assert key_file(tmp_path).read_bytes() == made
    assert [p.name for p in tmp_path.iterdir()] == ["key-encryption-keys"]
    path.chmod(0o640)
    with pytest.raises(ConfigurationError, match="others can read"):
        key_file(tmp_path)
