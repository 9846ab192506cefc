"""A real Valkey or Redis."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import redis

from fedsvc import lifeline
from fedsvc.embedded import find_server

PATIENCE = 20.0


def tied(command: Sequence[str]) -> list[str]:
    """The command, which ends when the thread that starts it does, however that ends."""
    return [sys.executable, "-I", "-S", lifeline.__file__, str(os.getpid()), *command]


class ValkeyServer:
    """One server. `kill` is SIGKILL; `restart` starts it again on the same files and address."""

    def __init__(
        self, directory: Path, *, appendonly: bool = False, port: int = 0, extra: tuple[str, ...] = ()
    ) -> None:
        self._directory = directory
        self._port = port
        # the path of a unix socket is short, pytest's directories are not
        self._scratch = tempfile.TemporaryDirectory(prefix="fedsvc-test-")
        self.socket = f"{self._scratch.name}/s"
        self._arguments = [
            str(find_server()),
            *("--port", str(port), "--bind", "127.0.0.1", "--unixsocket", self.socket),
            *("--dir", str(directory), "--save", "", "--appendonly", "yes" if appendonly else "no"),
            # a replica gets what there is at once, not after five seconds
            *("--repl-diskless-sync-delay", "0"),
            *("--daemonize", "no", "--logfile", str(directory / "valkey.log"), *extra),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._port}/0" if self._port else f"unix://{self.socket}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def client(self) -> redis.Redis:
        return redis.Redis(unix_socket_path=self.socket, socket_timeout=PATIENCE)

    def start(self) -> None:
        self._process = subprocess.Popen(tied(self._arguments), stdin=subprocess.DEVNULL)
        end = time.monotonic() + PATIENCE
        with self.client() as client:
            while True:
                try:
                    client.ping()
                    return
                except redis.RedisError:
                    assert self._process.poll() is None, (self._directory / "valkey.log").read_text()
                    assert time.monotonic() < end, "the server does not answer"
                    time.sleep(0.01)

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        """In order; with an append-only file nothing is lost."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate()
            self._process.wait(PATIENCE)

    def restart(self) -> None:
        self.stop()
        self.start()

    def close(self) -> None:
        self.kill()
        self._scratch.cleanup()


@contextmanager
def valkey_server(
    directory: Path, *, appendonly: bool = False, port: int = 0, extra: tuple[str, ...] = ()
) -> Iterator[ValkeyServer]:
    """`port` 0: on a unix socket only."""
    server = ValkeyServer(directory, appendonly=appendonly, port=port, extra=extra)
    server.start()
    try:
        yield server
    finally:
        server.close()
