"""Signing off the event loop.

An RSA-2048 signature takes about 0.3 ms. Processes of their own sign, in threads, beside the loop that sends.
Threads of this process would cost more: each signature has to win the interpreter's lock back from a loop
that is busy, which takes 80 µs of CPU, and the loop waits too. What is asked for in one turn of the loop goes
out together, and comes back in shares. What is urgent passes what waits.

Signed in place is what an Ed25519 key signs, which takes less than the way there and back; the only signature
that is asked for; and all of them while no process is ready: at first, and after one was lost.
"""

from __future__ import annotations

import asyncio
import hashlib
import socket
import subprocess
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import Final, cast

import structlog

from fedsvc.domain.keys import PrivateKey, to_storable
from fedsvc.worker.metrics import SIGNATURES
from fedsvc.worker.signing_process import ANSWER, KEY, NORMAL, REQUEST, SLOTS, URGENT

log = structlog.get_logger(__name__)


class _Job:
    __slots__ = ("data", "key", "signed", "urgent")

    def __init__(self, key: PrivateKey, data: bytes, signed: asyncio.Future[bytes], urgent: bool) -> None:
        self.key, self.data, self.signed, self.urgent = key, data, signed, urgent

    def sign(self) -> None:
        """In place."""
        if self.signed.done():
            return  # it was cancelled
        try:
            self.signed.set_result(self.key.sign(self.data))
        except Exception as error:  # noqa: BLE001 - it is the caller's
            self.signed.set_exception(error)


class Signer:
    """Signs in up to `processes` processes of so many `threads` each, which are started when there is work
    for them. Made in the event loop that it belongs to. A caller waits for its own signature, so that no more
    jobs are held than deliveries are under way."""

    #: signatures that a process has before it, above which another one is started
    BUSY: Final = 24
    #: seconds from the start of one process to the next try, if it was lost
    PAUSE: Final = 1.0

    def __init__(self, processes: int, threads: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._limit = processes
        self._threads = threads
        self._processes: list[_Process] = []
        #: what was asked for in this turn of the loop
        self._asked: list[_Job] = []
        #: what is signed in place, one in each turn of the loop
        self._here: deque[_Job] = deque()
        self._not_before = 0.0
        self._closed = False

    async def sign(self, key: PrivateKey, data: bytes, *, urgent: bool = False) -> bytes:
        """The signature of `data`. Raises RuntimeError once closed, else what the key raises."""
        if self._closed:
            raise RuntimeError("the signer is closed")
        if key.algorithm == "ed25519":
            return key.sign(data)
        begun = self._loop.time()
        signed: asyncio.Future[bytes] = self._loop.create_future()
        if not self._asked:
            self._loop.call_soon(self._hand_out)
        self._asked.append(_Job(key, data, signed, urgent))
        signature = await signed
        SIGNATURES.observe(self._loop.time() - begun)
        return signature

    def close(self) -> None:
        """Ends the processes; who still waits for a signature gets RuntimeError."""
        self._closed = True
        left = [*self._asked, *self._here]
        for process in self._processes:
            left += process.end()
        for job in left:
            if not job.signed.done():
                job.signed.set_exception(RuntimeError("the signer is closed"))

    def _hand_out(self) -> None:
        asked, self._asked = self._asked, []
        if self._closed:
            return
        ready = [process for process in self._processes if process.ready]
        waiting = len(self._here) + sum(len(process) for process in ready)
        if len(asked) == 1 and not waiting:
            asked[0].sign()
            return
        if waiting + len(asked) > self.BUSY * len(ready):
            self._start()
        if ready:
            self._send(asked, ready)
        else:
            self._sign_here(asked)

    def _send(self, jobs: Iterable[_Job], ready: list[_Process]) -> None:
        for job in jobs:
            if not job.signed.done():
                (ready[0] if len(ready) == 1 else min(ready, key=len)).take(job)
        for process in ready:
            process.flush()

    def _sign_here(self, jobs: Iterable[_Job]) -> None:
        if not self._here:
            self._loop.call_soon(self._sign_next)
        for job in jobs:
            (self._here.appendleft if job.urgent else self._here.append)(job)

    def _sign_next(self) -> None:
        if self._here and not self._closed:
            self._here.popleft().sign()
            if self._here:
                self._loop.call_soon(self._sign_next)

    def _start(self) -> None:
        now = self._loop.time()
        if len(self._processes) >= self._limit or now < self._not_before:
            return
        if any(not process.ready for process in self._processes):
            return
        self._not_before = now + self.PAUSE
        try:
            self._processes.append(_Process(self._loop, self._threads, self._is_ready, self._is_lost))
        except OSError as error:
            log.warning("signing_process_failed", problem=str(error))

    def _is_ready(self, process: _Process) -> None:
        waiting, self._here = self._here, deque()
        self._send(waiting, [process])

    def _is_lost(self, process: _Process) -> None:
        """What it had not signed yet is signed here."""
        left = process.end()
        self._processes.remove(process)
        if self._closed:
            return
        log.warning("signing_process_ended", code=process.code, signatures=len(left))
        self._sign_here(left)


class _Process(asyncio.Protocol):
    """One of them, from its start on. Its length is what it has not signed yet."""

    #: seconds without a word, while it starts or has something to sign, after which it is taken for lost
    SILENCE: Final = 10.0

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        threads: int,
        is_ready: Callable[[_Process], None],
        is_lost: Callable[[_Process], None],
    ) -> None:
        """Raises OSError."""
        self.ready = False
        self._is_ready, self._is_lost = is_ready, is_lost
        self._jobs: dict[int, _Job] = {}
        self._number = 0
        #: slots of keys that it has, by fingerprint, the least recently used first
        self._slots: OrderedDict[str, int] = OrderedDict()
        self._unsent: list[bytes] = []
        self._received = b""
        self._transport: asyncio.Transport | None = None
        self._ended = False
        self._socket, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [
                        sys.executable,
                        "-m",
                        "fedsvc.worker.signing_process",
                        str(theirs.fileno()),
                        str(threads),
                    ],
                    stdin=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                )
            except OSError:
                self._socket.close()
                raise
        self._loop = loop
        #: since when it owes a word, while it does
        self._owing = loop.time()
        self._connecting = loop.create_task(self._connect())
        self._looking = loop.call_later(self.SILENCE / 2, self._look)

    @property
    def code(self) -> int | None:
        return self._process.returncode

    def __len__(self) -> int:
        return len(self._jobs)

    def take(self, job: _Job) -> None:
        """Sent by `flush`."""
        if not self._jobs:
            self._owing = self._loop.time()
        self._number = self._number % 0xFFFFFFFF + 1
        self._jobs[self._number] = job
        slot = self._slot(job.key)
        kind = URGENT if job.urgent else NORMAL
        self._unsent.append(REQUEST.pack(kind, slot, self._number, hashlib.sha256(job.data).digest()))

    def flush(self) -> None:
        if self._unsent and self._transport is not None:
            self._transport.write(b"".join(self._unsent))
            self._unsent.clear()

    def end(self) -> list[_Job]:
        """End it at once: it has nothing to lose. Returns what it has not signed."""
        self._ended = True
        self._looking.cancel()
        self._connecting.cancel()
        if self._transport is not None:
            self._transport.abort()
        else:
            self._socket.close()
        self._process.kill()
        self._process.wait()
        left = list(self._jobs.values())
        self._jobs.clear()
        return left

    def _slot(self, key: PrivateKey) -> int:
        slot = self._slots.get(key.fingerprint)
        if slot is not None:
            self._slots.move_to_end(key.fingerprint)
            return slot
        slot = len(self._slots) if len(self._slots) < SLOTS else self._slots.popitem(last=False)[1]
        self._slots[key.fingerprint] = slot
        der = to_storable(key)
        self._unsent += (REQUEST.pack(KEY, slot, len(der), b""), der)
        return slot

    async def _connect(self) -> None:
        try:
            await self._loop.create_unix_connection(lambda: self, sock=self._socket)
        except OSError:
            self.connection_lost(None)

    def _look(self) -> None:
        owes = self._jobs or not self.ready
        if owes and self._loop.time() - self._owing >= self.SILENCE:
            self._is_lost(self)
        else:
            self._looking = self._loop.call_later(self.SILENCE / 2, self._look)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self._ended:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._owing = self._loop.time()
        data, at = self._received + data, 0
        while len(data) - at >= ANSWER.size:
            number, length = ANSWER.unpack_from(data, at)
            end = at + ANSWER.size + length
            if len(data) < end:
                break
            if number:
                self._signed(number, data[end - length : end])
            else:
                self.ready = True
                self._is_ready(self)
            at = end
        self._received = data[at:]

    def connection_lost(self, exc: Exception | None) -> None:
        self.ready = False
        if not self._ended:
            self._is_lost(self)

    def _signed(self, number: int, signature: bytes) -> None:
        job = self._jobs.pop(number, None)
        if job is None:
            return
        if not signature:
            job.sign()
        elif not job.signed.done():  # else it was cancelled
            job.signed.set_result(signature)
