import asyncio
import threading
from typing import Any

import pytest

from fedsvc.worker.signer import Signer


class Key:
    """Stands in for a PrivateKey: signs by reversing, and remembers where."""

    fingerprint = "f"

    def __init__(self, algorithm: str = "rsa", go: threading.Event | None = None) -> None:
        self.algorithm = algorithm
        self.go = go
        self.threads: list[threading.Thread] = []

    def sign(self, data: bytes) -> bytes:
        self.threads.append(threading.current_thread())
        if self.go is not None:
            assert self.go.wait(10)
        if data == b"bad":
            raise ValueError("cannot sign this")
        return data[::-1]


async def sign(signer: Signer, key: Any, data: bytes) -> bytes:
    return await signer.sign(key, data)


async def test_rsa_signatures_are_made_off_the_event_loop() -> None:
    signer, key = Signer(2), Key()
    assert await sign(signer, key, b"abc") == b"cba"
    signer.close()
    assert threading.main_thread() not in key.threads


async def test_ed25519_signatures_are_made_in_place() -> None:
    signer, key = Signer(1), Key("ed25519")
    assert await sign(signer, key, b"abc") == b"cba"
    signer.close()
    assert key.threads == [threading.main_thread()]


async def test_everyone_gets_their_own_signature() -> None:
    signer, key = Signer(3), Key()
    wanted = [str(n).encode() for n in range(500)]
    signatures = await asyncio.gather(*(sign(signer, key, data) for data in wanted))
    signer.close()
    assert signatures == [data[::-1] for data in wanted]


async def test_a_signature_that_fails_is_the_callers_and_no_other_ones() -> None:
    signer, key = Signer(1), Key()
    results = await asyncio.gather(
        *(sign(signer, key, data) for data in (b"ab", b"bad", b"cd")), return_exceptions=True
    )
    signer.close()
    assert [results[0], results[2]] == [b"ba", b"dc"]
    assert isinstance(results[1], ValueError)


async def test_a_caller_that_is_cancelled_does_not_hold_up_the_next() -> None:
    go = threading.Event()
    signer, key = Signer(1), Key(go=go)
    first, second = (asyncio.create_task(sign(signer, key, data)) for data in (b"ab", b"cd"))
    await asyncio.sleep(0)
    second.cancel()
    go.set()
    assert await first == b"ba"
    with pytest.raises(asyncio.CancelledError):
        await second
    assert await sign(signer, key, b"ef") == b"fe"
    signer.close()
    assert len(key.threads) == 2


async def test_closing_ends_the_threads_and_tells_who_still_waits() -> None:
    go = threading.Event()
    signer, key = Signer(1), Key(go=go)
    begun = asyncio.create_task(sign(signer, key, b"ab"))
    async with asyncio.timeout(5):
        while not key.threads:
            await asyncio.sleep(0)
    waiting = asyncio.create_task(sign(signer, key, b"cd"))
    await asyncio.sleep(0)
    go.set()
    signer.close()
    assert not any(thread.is_alive() for thread in key.threads)
    assert await begun == b"ba"
    result = (await asyncio.gather(waiting, return_exceptions=True))[0]
    assert result == b"dc" or isinstance(result, RuntimeError)
    with pytest.raises(RuntimeError, match="closed"):
        await sign(signer, key, b"ef")
