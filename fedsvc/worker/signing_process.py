"""The process that signs for a worker process: keys and digests come by a socket, signatures leave by it.

Run as `python -m fedsvc.worker.signing_process FD`, by `signer.py` alone. It opens nothing, keeps nothing and
ends with its worker; a worker that loses it starts another one. All numbers are big-endian:

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
    """Signs what comes by `connection`, a stream socket that blocks."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._received = bytearray()
        self._keys: dict[int, PrivateKey | None] = {}
        self._urgent: deque[_Job] = deque()
        self._normal: deque[_Job] = deque()
        self._answers: list[bytes] = []

    def run(self) -> None:
        """Until the other side closes."""
        self._connection.sendall(ANSWER.pack(0, 0))
        while self._receive():
            jobs = self._urgent or self._normal
            if jobs:
                self._answer(jobs.popleft())
            # Waking the worker costs a tenth of a signature.
            if len(self._answers) >= SHARE or jobs is self._urgent or not (self._urgent or self._normal):
                self._connection.sendall(b"".join(self._answers))
                self._answers.clear()

    def _receive(self) -> bool:
        """Take what has come; wait for it if there is nothing else to do. False at the end."""
        busy = bool(self._urgent or self._normal)
        try:
            received = self._connection.recv(_READ, socket.MSG_DONTWAIT if busy else 0)
        except BlockingIOError:
            return True
        self._received += received
        self._parse()
        return bool(received)

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

    def _answer(self, job: _Job) -> None:
        signature = b""
        if job.key is not None:
            # The worker tries it again itself, and learns what is wrong.
            with suppress(Exception):
                signature = job.key.sign_digest(job.digest)
        self._answers.append(ANSWER.pack(job.number, len(signature)) + signature)


def _read(der: bytes) -> PrivateKey | None:
    with suppress(KeyUnavailable):
        return from_storable(der)
    return None


def main(fd: int) -> None:
    # It ends when its worker closes the socket, which sends what is under way before; who ends all processes
    # of a group or a service must not take it away before.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    with suppress(OSError):
        os.nice(NICE)
    with socket.socket(fileno=fd) as connection, suppress(ConnectionError):
        SigningProcess(connection).run()


if __name__ == "__main__":
    main(int(sys.argv[1]))
