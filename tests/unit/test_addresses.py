import asyncio
import socket
import threading
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsvc.worker import resolver as resolver_module
from fedsvc.worker.addresses import AddressPolicy, AddressRefused
from fedsvc.worker.resolver import NameLookupFailed, NameNotFound, PolicyResolver, look_up

PUBLIC_ONLY = AddressPolicy((), {443}, allow_http=False)


def with_networks(*networks: str) -> AddressPolicy:
    return AddressPolicy([ip_network(n) for n in networks], {443}, allow_http=False)


@pytest.mark.parametrize(
    "address",
    [
        "1.1.1.1",
        "8.8.8.8",
        "172.32.0.1",
        "100.128.0.1",
        "192.0.1.1",
        "223.255.255.255",
        "2606:4700::1111",
        "2a01:4f8::1",
        "::ffff:1.1.1.1",
        "64:ff9b::808:808",
    ],
)
def test_a_public_address_is_taken(address: str) -> None:
    PUBLIC_ONLY.check(address, 443)


REFUSED = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "127.0.0.1",
    "127.255.255.254",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.8",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.51.100.7",
    "203.0.113.9",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
]


@pytest.mark.parametrize("address", REFUSED)
def test_an_address_that_is_not_public_is_refused_in_all_its_forms(address: str) -> None:
    a, b, c, d = (int(part) for part in address.split("."))
    forms = [
        address,
        f"::ffff:{address}",
        f"64:ff9b::{a:02x}{b:02x}:{c:02x}{d:02x}",
        f"64:ff9b:1::{a:02x}{b:02x}:{c:02x}{d:02x}",
        f"2002:{a:02x}{b:02x}:{c:02x}{d:02x}::1",
        f"::{address}",
    ]
    for form in forms:
        with pytest.raises(AddressRefused):
            PUBLIC_ONLY.check(form, 443)


@pytest.mark.parametrize(
    "address",
    [
        "::",
        "::1",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "fc00::1",
        "fd12:3456::1",
        "ff02::1",
        "2001::1",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",  # Teredo
        "2001:db8::1",
        "2002:0808:0808::1",  # 6to4, of a public address too: nobody is reached that way any more
        "3fff::1",
        "5f00::1",
        "100::1",
        "4000::1",
    ],
)
def test_an_ipv6_address_that_is_not_public_is_refused(address: str) -> None:
    with pytest.raises(AddressRefused):
        PUBLIC_ONLY.check(address, 443)


@pytest.mark.parametrize(
    "text", ["", "localhost", "127.1", "0x7f000001", "2130706433", "0177.0.0.1", "1.1.1.1/32"]
)
def test_what_is_no_canonical_address_is_refused(text: str) -> None:
    with pytest.raises(AddressRefused, match="not an IP address"):
        PUBLIC_ONLY.check(text, 443)


@pytest.mark.parametrize("port", [0, 22, 80, 6379, 8443])
def test_another_port_of_a_public_address_is_refused(port: int) -> None:
    with pytest.raises(AddressRefused, match=f"port {port} "):
        PUBLIC_ONLY.check("1.1.1.1", port)


def test_http_opens_port_80_only() -> None:
    policy = AddressPolicy((), {443, 8443}, allow_http=True)
    for port in (80, 443, 8443):
        policy.check("1.1.1.1", port)
    with pytest.raises(AddressRefused):
        policy.check("1.1.1.1", 8080)


@pytest.mark.parametrize("address", ["127.0.0.1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "::1"])
def test_an_allowed_network_is_taken_on_any_port(address: str) -> None:
    with_networks("127.0.0.0/8", "::1/128").check(address, 12345)


def test_an_allowed_network_allows_nothing_beside_it() -> None:
    policy = with_networks("10.1.0.0/16")
    policy.check("10.1.2.3", 80)
    for address in ("10.2.0.1", "127.0.0.1"):
        with pytest.raises(AddressRefused):
            policy.check(address, 443)


@given(st.ip_addresses())
def test_only_addresses_that_the_library_calls_global_are_taken(address: object) -> None:
    # ours is the stricter list, so that agreement is wanted in one direction
    from ipaddress import IPv4Address, IPv6Address

    assert isinstance(address, IPv4Address | IPv6Address)
    try:
        PUBLIC_ONLY.check(address, 443)
    except AddressRefused:
        return
    assert address.is_global or str(address).startswith("64:ff9b:")
    assert not address.is_multicast


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
    resolver = PolicyResolver(with_networks("127.0.0.0/8", "::1/128"), 5)
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
    for host in ("a.example", "b.example", "c.example", "c.example", "a.example"):
        await resolver.resolve(host, 443)
    assert asked == ["a.example", "b.example", "c.example", "a.example"]
    await resolver.close()


async def test_closing_ends_lookups_that_hang() -> None:
    release = threading.Event()
    resolver = PolicyResolver(PUBLIC_ONLY, 60, lambda host: ("1.1.1.1",) if release.wait(10) else ())
    waiting = asyncio.create_task(resolver.resolve("hangs.example", 443))
    await asyncio.sleep(0)
    await resolver.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    release.set()


@pytest.mark.parametrize("host", ["a" * 64 + ".example", "..", "ü.example"])
def test_what_cannot_be_a_name_is_not_found(host: str) -> None:
    with pytest.raises((NameNotFound, NameLookupFailed)):
        look_up(host)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (socket.EAI_NONAME, NameNotFound),
        (socket.EAI_AGAIN, NameLookupFailed),
        (socket.EAI_FAIL, NameLookupFailed),
    ],
)
def test_only_a_clear_no_means_that_a_name_does_not_exist(
    monkeypatch: pytest.MonkeyPatch, code: int, expected: type[OSError]
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise socket.gaierror(code, "said so")

    monkeypatch.setattr(socket, "getaddrinfo", failing)
    with pytest.raises(expected, match="said so"):
        look_up("some.example")
