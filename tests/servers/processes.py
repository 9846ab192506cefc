"""fedsvc itself, as real processes."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from fedsvc_client import AsyncFedsvcClient, Delivery

_READY = re.compile(r"fedsvc is ready: grpc=(\S+) http=(\S+)")


class Fedsvc:
    """A `fedsvc` command that runs until it is stopped. Its output is kept in files of `directory`."""

    def __init__(self, directory: Path, *arguments: str, settings: Mapping[str, str] | None = None) -> None:
        self.directory = directory
        self.arguments = arguments
        self.settings = dict(settings or {})
        self.lines: list[str] = []
        self._line = threading.Condition()
        self._process: subprocess.Popen[str] | None = None

    @property
    def process(self) -> subprocess.Popen[str]:
        assert self._process is not None
        return self._process

    @property
    def stderr(self) -> str:
        return (self.directory / "stderr").read_text(errors="replace")

    def start(self) -> Fedsvc:
        own = {"PATH", "HOME", "LANG", "TMPDIR", "SSL_CERT_FILE", "PYTHONPATH", "VIRTUAL_ENV"}
        environment = {name: value for name, value in os.environ.items() if name in own} | self.settings
        with (self.directory / "stderr").open("a") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "fedsvc", *self.arguments],
                env=environment,
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        threading.Thread(target=self._read, args=(self._process,), daemon=True).start()
        return self

    def ready(self, patience: float = 60.0) -> tuple[str, str]:
        """Of `fedsvc dev`: where it speaks gRPC and HTTP, once it has said so."""
        end = time.monotonic() + patience
        with self._line:
            while True:
                for line in self.lines:
                    if found := _READY.fullmatch(line):
                        return found[1], found[2]
                assert self.process.poll() is None, f"it ended: {self.stderr[-2000:]}"
                assert time.monotonic() < end, f"it is not ready: {self.stderr[-2000:]}"
                self._line.wait(0.1)

    def children(self) -> dict[int, str]:
        """All processes below it: pid -> command line."""
        return descendants(self.process.pid)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self, number: int = signal.SIGTERM, patience: float = 60.0) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(patience)

    def __enter__(self) -> Fedsvc:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            below = self.children()
            try:
                self.stop(patience=20.0)
            except subprocess.TimeoutExpired:
                self.kill()
                for pid in below:
                    try:
                        os.kill(pid, signal.SIGKILL)
                    except ProcessLookupError:
                        continue

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            with self._line:
                self.lines.append(line.rstrip("\n"))
                self._line.notify_all()
        process.stdout.close()


def run(
    settings: Mapping[str, str], *arguments: str, directory: Path | None = None, given: str | None = None
) -> subprocess.CompletedProcess[str]:
    """A command that ends by itself, with these settings and no others; `given` is its standard input."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FEDSVC_")}
    return subprocess.run(
        [sys.executable, "-m", "fedsvc", *arguments],
        capture_output=True, text=True, timeout=60, env={**kept, **settings}, cwd=directory, input=given,
    )  # fmt: skip


def fedsvc(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """The same, as one types it."""
    return run(settings, *arguments)


def descendants(pid: int) -> dict[int, str]:
    """pid -> command line, of all processes below `pid` (Linux)."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except (OSError, IndexError):
                continue
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found: dict[int, str] = {}
    waiting = [pid]
    while waiting:
        for child in parents.get(waiting.pop(), []):
            try:
                found[child] = (
                    Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
                )
            except OSError:
                continue
            waiting.append(child)
    return found


async def ended(client: AsyncFedsvcClient, delivery_id: str) -> Delivery:
    """A delivery once nothing more happens to it by itself."""
    async with asyncio.timeout(30):
        while not (delivery := await client.get_delivery(delivery_id)).state.is_final:
            await asyncio.sleep(0.01)
    return delivery
