"""Names to addresses: what is asked, remembered and given up."""

import asyncio
import gc
import socket
import threading
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from fedsvc.worker import resolver as resolver_module
from fedsvc.worker.addresses import AddressPolicy, AddressRefused
from fedsvc.worker.resolver import NameLookupFailed, NameNotFound, PolicyResolver, look_up

PUBLIC_ONLY = AddressPolicy((), {443}, allow_http=False)
LOCAL = AddressPolicy([ip_network("127.0.0.0/8"), ip_network("::1/128")], {443}, allow_http=False)


def resolving(*addresses: str, policy: AddressPolicy = PUBLIC_ONLY) -> PolicyResolver:
    return PolicyResolver(policy, 5, lambda host: addresses)


async def test_addresses_that_may_not_be_used_are_dropped_from_an_answer() -> None:
    resolver = resolving("10.0.0.1", "1.1.1.1", "::1", "2606:4700::1111")
    assert await resolver.resolve("mixed.example", 443) == ["1.1.1.1", "2606:4700::1111"]
    await resolver.close()


async def test_of_thousands_of_addresses_the_first_of_each_family_are_kept() -> None:
    resolver = resolving(*(f"1.1.{n // 256}.{n % 256}" for n in range(4000)), "2606:4700::1111")
    found = await resolver.resolve("many.example", 443)
    assert found == ["1.1.0.0", "1.1.0.1", "1.1.0.2", "1.1.0.3", "2606:4700::1111"]
    await resolver.close()


async def test_many_addresses_of_one_family_leave_those_of_the_other() -> None:
    resolver = resolving(*(f"2606:4700::{n}" for n in range(1, 10)), "1.1.1.1")
    found = await resolver.resolve("many.example", 443)
    assert found == ["2606:4700::1", "2606:4700::2", "2606:4700::3", "2606:4700::4", "1.1.1.1"]
    await resolver.close()


async def test_a_name_without_any_address_is_not_found() -> None:
    resolver = resolving()
    with pytest.raises(NameNotFound, match="no address"):
        await resolver.resolve("none.example", 443)
    await resolver.close()


async def test_a_name_with_private_addresses_only_is_refused() -> None:
    resolver = resolving("10.0.0.1", "127.0.0.1")
    with pytest.raises(AddressRefused):
        await resolver.resolve("rebind.example", 443)
    await resolver.close()


async def test_localhost_resolves_but_is_refused_unless_allowed() -> None:
    resolver = PolicyResolver(PUBLIC_ONLY, 5)
    with pytest.raises(AddressRefused):
        await resolver.resolve("localhost", 443)
    await resolver.close()
    resolver = PolicyResolver(LOCAL, 5)
    assert await resolver.resolve("localhost", 8000)
    await resolver.close()


async def test_a_lookup_is_shared_and_remembered() -> None:
    asked: list[str] = []
    go = threading.Event()

    def slowly(host: str) -> tuple[str, ...]:
        asked.append(host)
        assert go.wait(10)
        return ("1.1.1.1",)

    resolver = PolicyResolver(PUBLIC_ONLY, 10, slowly)
    waiting = [asyncio.create_task(resolver.resolve("one.example", 443)) for _ in range(5)]
    await asyncio.sleep(0)
    go.set()
    await asyncio.gather(*waiting)
    await resolver.resolve("one.example", 443)
    assert asked == ["one.example"]
    await resolver.close()


async def test_a_name_that_does_not_exist_is_remembered_for_a_while() -> None:
    asked: list[str] = []

    def absent(host: str) -> tuple[str, ...]:
        asked.append(host)
        raise NameNotFound(host)

    resolver = PolicyResolver(PUBLIC_ONLY, 5, absent)
    for _ in range(3):
        with pytest.raises(NameNotFound):
            await resolver.resolve("gone.example", 443)
    assert asked == ["gone.example"]
    await resolver.close()


@pytest.mark.parametrize(
    ("there", "setting", "times"),
    [(True, "TTL_S", 2), (True, "NEGATIVE_TTL_S", 1), (False, "NEGATIVE_TTL_S", 2), (False, "TTL_S", 1)],
)
async def test_an_answer_is_asked_for_again_when_its_time_is_over(
    there: bool, setting: str, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def answer(host: str) -> tuple[str, ...]:
        asked.append(host)
        if there:
            return ("1.1.1.1",)
        raise NameNotFound(host)

    monkeypatch.setattr(resolver_module, setting, -0.001)
    resolver = PolicyResolver(PUBLIC_ONLY, 5, answer)
    for _ in range(2):
        await asyncio.gather(resolver.resolve("one.example", 443), return_exceptions=True)
    assert len(asked) == times
    await resolver.close()


async def test_closing_ends_the_threads() -> None:
    before = set(threading.enumerate())
    resolver = resolving("1.1.1.1")
    await resolver.resolve("one.example", 443)
    started = set(threading.enumerate()) - before
    assert started
    assert all(thread.daemon for thread in started), "a lookup must not hold up the end of the process"
    await resolver.close()
    for thread in started:
        await asyncio.to_thread(thread.join, 10)
        assert not thread.is_alive()


async def test_a_failed_lookup_is_asked_again() -> None:
    answers: list[Exception | tuple[str, ...]] = [NameLookupFailed("try again"), ("1.1.1.1",)]

    def flaky(host: str) -> tuple[str, ...]:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    resolver = PolicyResolver(PUBLIC_ONLY, 5, flaky)
    with pytest.raises(NameLookupFailed):
        await resolver.resolve("flaky.example", 443)
    assert await resolver.resolve("flaky.example", 443)
    await resolver.close()


async def test_a_lookup_that_hangs_ends_at_its_deadline_and_holds_up_no_other() -> None:
    release = threading.Event()

    def hanging(host: str) -> tuple[str, ...]:
        if host == "hangs.example":
            release.wait(10)
        return ("1.1.1.1",)

    resolver = PolicyResolver(PUBLIC_ONLY, 0.05, hanging)
    with pytest.raises(NameLookupFailed, match=r"no answer within 0\.05 s"):
        await resolver.resolve("hangs.example", 443)
    assert await resolver.resolve("other.example", 443)
    release.set()
    await resolver.close()


async def test_lookups_under_way_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver_module, "MAX_PENDING", 1)
    release = threading.Event()
    resolver = PolicyResolver(PUBLIC_ONLY, 5, lambda host: ("1.1.1.1",) if release.wait(10) else ())
    first = asyncio.create_task(resolver.resolve("one.example", 443))
    await asyncio.sleep(0)
    with pytest.raises(NameLookupFailed, match="too many"):
        await resolver.resolve("two.example", 443)
    release.set()
    assert await first
    await resolver.close()


async def test_the_cache_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver_module, "CACHED_NAMES", 2)
    asked: list[str] = []

    def counting(host: str) -> tuple[str, ...]:
        asked.append(host)
        return ("1.1.1.1",)

    resolver = PolicyResolver(PUBLIC_ONLY, 5, counting)
    for name in "abaccba":
        await resolver.resolve(f"{name}.example", 443)
    assert asked == [f"{name}.example" for name in "abca"]
    await resolver.close()


async def test_closing_ends_lookups_that_hang() -> None:
    loop, begun, release = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

    def hanging(host: str) -> tuple[str, ...]:
        loop.call_soon_threadsafe(begun.set)
        return ("1.1.1.1",) if release.wait(10) else ()

    resolver = PolicyResolver(PUBLIC_ONLY, 60, hanging)
    waiting = asyncio.create_task(resolver.resolve("hangs.example", 443))
    await begun.wait()
    await resolver.close()
    assert not resolver._pending
    with pytest.raises(asyncio.CancelledError):
        await waiting
    release.set()


async def test_a_name_for_which_no_thread_was_free_in_time_is_not_looked_up_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resolver_module, "THREADS", 1)
    asked: list[str] = []
    release = threading.Event()

    def hanging(host: str) -> tuple[str, ...]:
        asked.append(host)
        assert release.wait(10)
        return ("1.1.1.1",)

    resolver = PolicyResolver(PUBLIC_ONLY, 0.05, hanging)
    with pytest.raises(NameLookupFailed):
        await resolver.resolve("hangs.example", 443)
    with pytest.raises(NameLookupFailed, match="no answer within"):
        await resolver._look_up("waits.example")  # as who asks later, and has time left then, is told
    release.set()
    await asyncio.gather(*resolver._pending.values())
    assert await resolver.resolve("third.example", 443)
    assert asked == ["hangs.example", "third.example"]
    await resolver.close()


async def test_a_lookup_that_fails_when_who_asked_has_gone_is_no_error_of_the_loop() -> None:
    loop, told = asyncio.get_running_loop(), list[dict[str, Any]]()
    loop.set_exception_handler(lambda _, context: told.append(context))
    begun, release = asyncio.Event(), threading.Event()

    def failing(host: str) -> tuple[str, ...]:
        loop.call_soon_threadsafe(begun.set)
        assert release.wait(10)
        raise NameLookupFailed(host)

    resolver = PolicyResolver(PUBLIC_ONLY, 5, failing)
    gone = asyncio.create_task(resolver.resolve("fails.example", 443))
    await begun.wait()
    gone.cancel()
    release.set()
    await asyncio.wait(list(resolver._pending.values()))
    await asyncio.sleep(0)  # those who hear of its end do so now
    assert not resolver._pending
    del gone
    gc.collect()
    assert told == []
    await resolver.close()


@pytest.mark.parametrize("host", ["a" * 64 + ".example", "..", "ü.example"])
def test_what_cannot_be_a_name_is_not_found(host: str) -> None:
    with pytest.raises((NameNotFound, NameLookupFailed)):
        look_up(host)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (socket.gaierror(socket.EAI_NONAME, "said so"), NameNotFound),
        (socket.gaierror(socket.EAI_NODATA, "said so"), NameNotFound),
        (socket.gaierror(socket.EAI_AGAIN, "said so"), NameLookupFailed),
        (socket.gaierror(socket.EAI_FAIL, "said so"), NameLookupFailed),
        (OSError(5, "said so"), NameLookupFailed),
    ],
)
def test_only_a_clear_no_means_that_a_name_does_not_exist(
    monkeypatch: pytest.MonkeyPatch, error: OSError, expected: type[OSError]
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(socket, "getaddrinfo", failing)
    opened = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(expected, match=r"^some\.example: said so$") as told:
        look_up("some.example")
    assert told.type is expected
    left = len(list(Path("/proc/self/fd").iterdir()))
    assert left <= opened, "what was opened to see whether there are files left is closed"
