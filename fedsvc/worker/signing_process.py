"""The process that signs for a worker process: keys and digests come by a socket, signatures leave by it.

Run as `python -m fedsvc.worker.signing_process FD THREADS`, by `signer.py` alone. It opens nothing, keeps
nothing and ends with its worker; a worker that loses it starts another one. Several threads sign: the lock of
the interpreter is released meanwhile, and nothing here holds it for long. All numbers are big-endian:

    job      kind u8 (0, or 1 if urgent), slot u16, number u32, SHA-256 of what is to be signed (32 bytes)
    key      kind u8 (2), slot u16, length u32, filler (32 bytes); then the key, PKCS#8 DER
    answer   number u32, length u16; then the signature, which is empty if the key cannot sign
    ready    an answer to number 0
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import sys
import threading
from collections import deque
from contextlib import suppress
from typing import Final, NamedTuple

from fedsvc.domain.errors import KeyUnavailable
from fedsvc.domain.keys import PrivateKey, from_storable

REQUEST: Final = struct.Struct("!BHI32s")
ANSWER: Final = struct.Struct("!IH")
NORMAL, URGENT, KEY = 0, 1, 2
#: keys that it holds: slots are smaller
SLOTS: Final = 1024
#: signatures that are sent together, at most: the first of them waits for the last
SHARE: Final = 8
#: how much less of a busy machine it gets than those who wait for others' signatures meanwhile (nice(2))
NICE: Final = 5

_READ: Final = 65_536


class _Job(NamedTuple):
    number: int
    #: None if it cannot be read
    key: PrivateKey | None
    digest: bytes


class SigningProcess:
    """Signs what comes by `connection`, a stream socket that blocks, in so many `threads`."""

    def __init__(self, connection: socket.socket, threads: int) -> None:
        self._connection = connection
        self._threads = [threading.Thread(target=self._sign, daemon=True) for _ in range(threads)]
        self._received = bytearray()
        self._keys: dict[int, PrivateKey | None] = {}
        self._urgent: deque[_Job] = deque()
        self._normal: deque[_Job] = deque()
        #: held by who looks at what is above; notified when jobs have come, and at the end
        self._changed = threading.Condition()
        self._ended = False
        self._sending = threading.Lock()

    def run(self) -> None:
        """Until the other side closes."""
        for thread in self._threads:
            thread.start()
        try:
            self._send(ANSWER.pack(0, 0))
            while received := self._connection.recv(_READ):
                with self._changed:
                    self._received += received
                    self._parse()
                    self._changed.notify_all()
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()
            for thread in self._threads:
                thread.join()  # which takes no longer than a signature

    def _parse(self) -> None:
        data, at = bytes(self._received), 0
        while len(data) - at >= REQUEST.size:
            kind, slot, number, digest = REQUEST.unpack_from(data, at)
            end = at + REQUEST.size
            if kind == KEY:
                if len(data) - end < number:
                    break
                self._keys[slot] = _read(data[end : end + number])
                end += number
            else:
                job = _Job(number, self._keys.get(slot), digest)
                (self._urgent if kind == URGENT else self._normal).append(job)
            at = end
        del self._received[:at]

    def _sign(self) -> None:
        """What each thread does, until the end."""
        try:
            self._sign_what_comes()
        except OSError:
            pass  # the other side is gone, as a rule
        finally:
            # Whatever it was: the worker waits for what this one has taken. It learns by the end of the whole
            # process that it will not come.
            if not self._ended:
                with suppress(OSError):
                    self._connection.shutdown(socket.SHUT_RDWR)

    def _sign_what_comes(self) -> None:
        answers: list[bytes] = []
        while not self._ended:
            with self._changed:
                jobs = self._urgent or self._normal
                if not jobs and not answers:
                    self._changed.wait_for(lambda: self._urgent or self._normal or self._ended)
                    continue
                urgent, job = jobs is self._urgent, jobs.popleft() if jobs else None
            if job is not None:
                answers.append(_answer(job))
            # Waking the worker costs a tenth of a signature.
            if len(answers) >= SHARE or urgent or job is None:
                self._send(b"".join(answers))
                answers.clear()

    def _send(self, data: bytes) -> None:
        with self._sending:
            self._connection.sendall(data)


def _answer(job: _Job) -> bytes:
    signature = b""
    if job.key is not None:
        # The worker tries it again itself, and learns what is wrong.
        with suppress(Exception):
            signature = job.key.sign_digest(job.digest)
    return ANSWER.pack(job.number, len(signature)) + signature


def _read(der: bytes) -> PrivateKey | None:
    with suppress(KeyUnavailable):
        return from_storable(der)
    return None


def main(fd: int, threads: int) -> None:
    # It ends when its worker closes the socket, which sends what is under way before; who ends all processes
    # of a group or a service must not take it away before.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    with suppress(OSError):
        os.nice(NICE)
    with socket.socket(fileno=fd) as connection, suppress(ConnectionError):
        SigningProcess(connection, threads).run()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
