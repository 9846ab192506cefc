"""Servers and workers of one queue, each a real process that can be started, stopped, killed and replaced."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedsvc.config import Settings
from servers.migrated import prepare

PATIENCE = 60.0


class Member:
    """One process that tells its state: `fedsvc server` or one worker process."""

    def __init__(self, directory: Path, command: str, *arguments: str, settings: Mapping[str, str]) -> None:
        own = {"PATH", "HOME", "LANG", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV"}
        environment = {name: value for name, value in os.environ.items() if name in own} | dict(settings)
        self._log = directory / f"{command}-{secrets.token_hex(4)}.log"
        self._told: dict[str, Any] = {}
        self._changed = threading.Condition()
        mine, theirs = os.pipe()
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fedsvc", command, *arguments, "--status-fd", str(theirs)],
                env=environment, cwd=directory, pass_fds=(theirs,),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        os.close(theirs)
        self._reader = threading.Thread(target=self._read, args=(mine,), daemon=True)
        self._reader.start()

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def grpc(self) -> str:
        """Where a server speaks gRPC, once it is ready."""
        return str(self._told["grpc"])

    def ready(self) -> None:
        """Once it returns, the process has said that it is."""
        self.until(lambda told: bool(told.get("ready")))

    def until(self, holds: Callable[[dict[str, Any]], bool]) -> None:
        """Once it returns, the process has told so."""
        end = time.monotonic() + PATIENCE
        with self._changed:
            while not holds(self._told):
                assert self.process.poll() is None, f"it ended: {self.log[-2000:]}"
                assert time.monotonic() < end, f"it does not say so: {self._told} {self.log[-2000:]}"
                self._changed.wait(0.1)

    def stop(self) -> int:
        """SIGTERM; returns the exit code once it has ended."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()
        self._reader.join(5)

    def _read(self, fd: int) -> None:
        with os.fdopen(fd) as lines:
            for line in lines:
                with self._changed:
                    self._told = json.loads(line)
                    self._changed.notify_all()


class Fleet:
    """Members in the order in which they were started."""

    def __init__(self, directory: Path, settings: Mapping[str, str]) -> None:
        self.directory = directory
        self.settings = {
            "DATABASE_URL": f"sqlite:///{directory / 'archive.db'}",
            "FEDSVC_KEY_ENCRYPTION_KEYS": secrets.token_hex(32),
            "FEDSVC_ALLOW_HTTP": "true",
            "FEDSVC_ALLOWED_CIDRS": "127.0.0.0/8",
            "FEDSVC_LOG_LEVEL": "warning",
            "FEDSVC_HTTP_LISTEN": "127.0.0.1:0",
            **settings,
        }
        self._all: list[Member] = []

    def server(self, listen: str = "127.0.0.1:0") -> Member:
        return self._started(Member(self.directory, "server", "--listen", listen, settings=self.settings))

    def worker(self, **settings: str) -> Member:
        return self._started(Member(self.directory, "worker-process", settings={**self.settings, **settings}))

    def _started(self, member: Member) -> Member:
        self._all.append(member)
        return member

    def close(self) -> None:
        for member in self._all:
            if member.process.poll() is None:
                member.process.terminate()
        for member in self._all:
            member.close()


@contextmanager
def fleet(directory: Path, **settings: str) -> Iterator[Fleet]:
    made = Fleet(directory, settings)
    try:
        with ThreadPoolExecutor(1) as aside:  # this thread's loop may run
            aside.submit(prepare, Settings.from_environment(made.settings)).result()
        yield made
    finally:
        made.close()
