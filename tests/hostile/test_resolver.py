"""Names whose servers are silent, slow or flooding: other names are still found."""

from __future__ import annotations

import asyncio
import threading

import pytest

from fedsvc.worker.addresses import AddressPolicy
from fedsvc.worker.resolver import THREADS, Found, NameLookupFailed, PolicyResolver

PUBLIC_ONLY = AddressPolicy((), {443}, allow_http=False)
#: seconds; of the deadline for one name, and of a lookup that nobody answers
DEADLINE_S = 3.0
SILENCE_S = 0.6


@pytest.mark.parametrize("names", [THREADS, 4 * THREADS, 12 * THREADS])
async def test_names_that_hang_do_not_keep_others_from_being_found(names: int) -> None:
    over = threading.Event()

    def look_up(host: str) -> Found:
        if host.startswith("silent"):
            over.wait(SILENCE_S)
            raise NameLookupFailed(host)
        return ("1.1.1.1",)

    resolver = PolicyResolver(PUBLIC_ONLY, DEADLINE_S, look_up)
    silent = [asyncio.create_task(resolver.resolve(f"silent{n}.example", 443)) for n in range(names)]
    await asyncio.sleep(0)
    for n in range(5):
        assert await resolver.resolve(f"good{n}.example", 443)
    over.set()
    found = await asyncio.gather(*silent, return_exceptions=True)
    assert all(isinstance(error, NameLookupFailed) for error in found)
    await resolver.close()


async def test_names_that_wait_in_vain_make_room_for_others() -> None:
    over = threading.Event()

    def look_up(host: str) -> Found:
        if host.startswith("silent"):
            assert over.wait(10)
        return ("1.1.1.1",)

    before = set(threading.enumerate())
    resolver = PolicyResolver(PUBLIC_ONLY, 0.2, look_up)
    for first in (0, 1000, 2000):  # all threads are stuck with the first, and stay so
        silent = [resolver.resolve(f"silent{n}.example", 443) for n in range(first, first + 900)]
        for error in await asyncio.gather(*silent, return_exceptions=True):
            assert isinstance(error, NameLookupFailed)
            assert "no answer within" in str(error)  # not: too many lookups under way
        async with asyncio.timeout(10):
            while len(resolver._pending) > THREADS:
                await asyncio.sleep(0)
        assert len(resolver._threads._jobs) <= 900
        assert len(set(threading.enumerate()) - before) == THREADS
    over.set()
    # what had begun is remembered for the next who asks
    assert await resolver.resolve("silent899.example", 443)
    await resolver.close()
