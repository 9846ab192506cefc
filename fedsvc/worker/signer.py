"""Signing off the event loop.

An RSA-2048 signature takes about 0.2 ms, in which cryptography releases the GIL: a few threads sign
while the loop sends. They hand their signatures back together, so that a busy loop is woken once for
several (an executor's future costs three times as much). An Ed25519 signature takes less than a change
of thread, and is made in place.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import NamedTuple

from fedsvc.domain.keys import PrivateKey


class _Job(NamedTuple):
    key: PrivateKey
    data: bytes
    signed: asyncio.Future[bytes]


class Signer:
    """Signs in `threads` threads. Made in the event loop that it belongs to. A caller waits for its own
    signature, so that no more jobs are held than deliveries are under way."""

    def __init__(self, threads: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._done: deque[tuple[asyncio.Future[bytes], bytes | Exception]] = deque()
        self._wakes = False  # the loop has been asked to collect what is done
        self._closed = False
        self._threads = [
            threading.Thread(target=self._run, name=f"sign-{n}", daemon=True) for n in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    async def sign(self, key: PrivateKey, data: bytes) -> bytes:
        """The signature of `data`. Raises RuntimeError once closed, else what the key raises."""
        if self._closed:
            raise RuntimeError("the signer is closed")
        if key.algorithm == "ed25519":
            return key.sign(data)
        signed: asyncio.Future[bytes] = self._loop.create_future()
        self._jobs.put(_Job(key, data, signed))
        return await signed

    def close(self) -> None:
        """Ends the threads (what they are signing takes under a millisecond); who still waits for a
        signature gets RuntimeError."""
        self._closed = True
        unsigned = []
        with suppress(Empty):
            while True:
                unsigned.append(self._jobs.get_nowait())
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        self._collect()
        for job in unsigned:
            if job is not None and not job.signed.done():
                job.signed.set_exception(RuntimeError("the signer is closed"))

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            result: bytes | Exception
            try:
                # of a delivery that was cancelled nobody wants the signature
                result = b"" if job.signed.cancelled() else job.key.sign(job.data)
            except Exception as error:  # noqa: BLE001 - it is the caller's
                result = error
            self._done.append((job.signed, result))
            # appended before the look at the flag, lowered before the collection: nothing is left behind
            if not self._wakes:
                self._wakes = True
                self._wake()

    def _wake(self) -> None:
        with suppress(RuntimeError):  # the loop has ended, and with it all who waited
            self._loop.call_soon_threadsafe(self._collect)

    def _collect(self) -> None:
        self._wakes = False
        while self._done:
            signed, result = self._done.popleft()
            if signed.done():
                continue
            if isinstance(result, bytes):
                signed.set_result(result)
            else:
                signed.set_exception(result)
