"""Processes that fedsvc starts: they die with their parent, tell it how they are, and end in order.

A child tells its state in lines of JSON on an inherited pipe (`--status-fd`). The same pipe works the other
way round for the child: when the parent is gone, writing fails. On Linux the kernel also signals a child
whose parent died (`lifeline.py`), so that no SIGKILL leaves orphans behind.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import structlog

log = structlog.get_logger(__name__)

#: bytes of one status line, at most
_LINE: Final = 65_536
#: seconds for what a child that has ended said last to be read
_LAST_WORD: Final = 1.0


def status_writer(fd: int) -> Callable[[dict[str, Any]], None]:
    """What a child tells its parent with. When nobody reads any more, the child is told to stop."""
    os.set_blocking(fd, False)

    def write(status: dict[str, Any]) -> None:
        try:
            os.write(fd, json.dumps(status).encode()[: _LINE - 1] + b"\n")
        except BlockingIOError:
            pass  # the parent is slow; the next one will do
        except OSError:
            os.kill(os.getpid(), signal.SIGTERM)

    return write


class Child:
    """One process of ours."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, reader: asyncio.StreamReader) -> None:
        self.name = name
        self.process = process
        self.status: dict[str, Any] = {}
        #: time.monotonic() of the last status; 0 before the first
        self.told = 0.0
        self.started = time.monotonic()
        self.changed = asyncio.Event()
        self._reading = asyncio.create_task(self._read(reader))

    @classmethod
    async def start(cls, name: str, arguments: Sequence[str], environment: Mapping[str, str]) -> Child:
        """Run `fedsvc ARGUMENTS --status-fd N --parent PID` with `environment` as its whole environment."""
        mine, theirs = os.pipe()
        os.set_inheritable(theirs, True)
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "fedsvc",
                *arguments,
                "--status-fd",
                str(theirs),
                "--parent",
                str(os.getpid()),
                env=dict(environment),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(theirs,),
                # Ctrl-C at a terminal reaches the whole group; children are stopped by us, in order.
                process_group=0,
            )
        finally:
            os.close(theirs)
        reader = asyncio.StreamReader(limit=_LINE)
        pipe = os.fdopen(mine, "rb", buffering=0)
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
        return cls(name, process, reader)

    @property
    def ready(self) -> bool:
        """Whether it said so, and not too long ago."""
        return bool(self.status.get("ready")) and time.monotonic() - self.told < 5.0

    @property
    def silent_s(self) -> float:
        """Seconds since it last said how it is, or since its start."""
        return time.monotonic() - max(self.told, self.started)

    @property
    def running(self) -> bool:
        return self.process.returncode is None

    async def wait_ready(self, deadline: float) -> bool:
        """Wait until it is ready; false if it ended, or `deadline` (of the loop's clock) passed."""
        ended = asyncio.create_task(self.process.wait())
        try:
            while not self.ready:
                left = deadline - asyncio.get_running_loop().time()
                if not self.running:
                    await asyncio.wait((self._reading,), timeout=_LAST_WORD)  # it may have said why
                    return False
                if left <= 0:
                    return False
                self.changed.clear()
                changed = asyncio.create_task(self.changed.wait())
                await asyncio.wait((changed, ended), timeout=left, return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
            return True
        finally:
            ended.cancel()

    async def stop(self, grace: float) -> int:
        """SIGTERM, and SIGKILL if it has not ended after `grace` seconds. Returns its exit code."""
        if self.running:
            self.process.terminate()
            try:
                async with asyncio.timeout(grace):
                    await self.process.wait()
            except TimeoutError:
                log.warning("killed", child=self.name, pid=self.process.pid)
                self.process.kill()
        code = await self.process.wait()
        self._reading.cancel()
        return code

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while True:
            try:
                line = await reader.readline()
                if not line:
                    return
                status = json.loads(line)
            except ValueError:  # too long, or not JSON: of several that ran together the next one counts
                continue
            if isinstance(status, dict):
                self.status, self.told = status, time.monotonic()
                self.changed.set()
