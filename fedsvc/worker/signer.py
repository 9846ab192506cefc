"""Signing off the event loop.

An RSA-2048 signature takes about 0.2 ms, in which cryptography releases the GIL: a few threads sign
while the loop sends. An Ed25519 signature takes less than a change of thread, and is made in place.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from fedsvc.domain.keys import PrivateKey

#: signatures that may wait for a thread; more callers wait for their turn, in order
_WAITING_PER_THREAD: Final = 64


class Signer:
    """Signs in `threads` threads. Belongs to one event loop."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="sign")
        self._turns = asyncio.Semaphore(threads * _WAITING_PER_THREAD)

    async def sign(self, key: PrivateKey, data: bytes) -> bytes:
        """The signature of `data`. Raises RuntimeError once closed."""
        if key.algorithm == "ed25519":
            return key.sign(data)
        async with self._turns:
            return await asyncio.get_running_loop().run_in_executor(self._pool, key.sign, data)

    def close(self) -> None:
        """Drop what waits for a thread, and let what is being signed end (less than a millisecond)."""
        self._pool.shutdown(wait=True, cancel_futures=True)
