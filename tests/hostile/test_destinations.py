"""Addresses and names that lead where no delivery may go: nothing is connected to, however they look."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_address

import pytest
from servers.remote import ACCEPTED, Remote, accepting, deliver, delivering

from fedsvc.domain.classify import Outcome
from fedsvc.domain.delivery import Reason
from fedsvc.domain.errors import InvalidInbox
from fedsvc.domain.inbox import parse_inbox
from hostile.conftest import Connections

#: kind -> an address of it
REFUSED = {
    "loopback": "127.0.0.1",
    "loopback, the last": "127.255.255.254",
    "unspecified": "0.0.0.0",
    "this network": "0.1.2.3",
    "private, 10": "10.0.0.1",
    "private, 172": "172.31.255.254",
    "private, 192": "192.168.1.1",
    "metadata": "169.254.169.254",
    "task metadata": "169.254.170.2",
    "CGNAT": "100.64.0.1",
    "metadata behind CGNAT": "100.100.100.200",
    "protocol assignments": "192.0.0.192",
    "documentation, 1": "192.0.2.1",
    "documentation, 2": "198.51.100.1",
    "documentation, 3": "203.0.113.1",
    "benchmarking": "198.19.255.255",
    "6to4 relay": "192.88.99.1",
    "multicast": "224.0.0.1",
    "reserved": "240.0.0.1",
    "broadcast": "255.255.255.255",
    "loopback, v6": "::1",
    "unspecified, v6": "::",
    "unique-local": "fd00::1",
    "metadata, v6": "fd00:ec2::254",
    "link-local, v6": "fe80::1",
    "site-local": "fec0::1",
    "multicast, v6": "ff02::1",
    "documentation, v6": "2001:db8::1",
    "documentation, v6, new": "3fff::1",
    "discard": "100::1",
    "benchmarking, v6": "2001:2::1",
    "mapped loopback": "::ffff:127.0.0.1",
    "mapped metadata": "::ffff:169.254.169.254",
    "mapped private, in hex": "::ffff:a00:1",
    "compatible loopback": "::127.0.0.1",
    "translated loopback": "::ffff:0:7f00:1",
    "NAT64 loopback": "64:ff9b::127.0.0.1",
    "NAT64 metadata": "64:ff9b::a9fe:a9fe",
    "NAT64, local prefix": "64:ff9b:1::a00:1",
    "6to4 of a private one": "2002:a00:1::1",
    "6to4 of a public one": "2002:808:808::1",
    "Teredo": "2001:0:4136:e378:8000:63bf:f5ff:fffe",
    "ORCHID": "2001:20::1",
    "ISATAP of a private one": "fe80::5efe:a00:1",
}
#: how 127.0.0.1 and 169.254.169.254 are written by those who have something to hide
ODD = [
    "2130706433",
    "0x7f000001",
    "0x7F.0.0.1",
    "017700000001",
    "0177.0.0.1",
    "127.1",
    "127.0.1",
    "127.0.0.1.",
    "127.0.0.01",
    "127.0.0.0x1",
    "0",
    "0.0",
    "0x0",
    "00000000000",
    "4294967295",
    "2852039166",
    "0xa9fea9fe",
    "0251.0376.0251.0376",
    "169.254.43518",
    "169.16689662",
    "425.510.425.510",
    "7147006462",
    "①②⑦.⓪.⓪.①",
    "127。0。0。1",
    "\uff11\uff12\uff17.0.0.1",
    "127.0.0.1%00.example",
    "127.0.0.1%2eexample",
    "[::1%25lo]",
    "[::1%lo]",
    "[fe80::1%25eth0]",
    "[::ffff:127.0.0.1%25lo]",
    "[0:0:0:0:0:0:0:1]",
    "[0000:0000:0000:0000:0000:0000:0000:0001]",
    "[::FFFF:7F00:1]",
    "[::ffff:0x7f.0.0.1]",
    "[::127.1]",
    "[::1].",
    "[::1",
    "[127.0.0.1]",
    "[v1.127.0.0.1]",
    "::1",
    "127.0.0.1:443:443",
    "1.1.1.1@127.0.0.1",
    "1.1.1.1:x@127.0.0.1",
    "1.1.1.1\\@127.0.0.1",
    "127.0.0.1\t",
    " 127.0.0.1",
    "127.0.0.1\r\nX: y",
    "-127.0.0.1",
    "127.0.0.1..",
    "..",
]
_WRONG = (Reason.ADDRESS_REFUSED, Reason.REDIRECTED)


def shown(address: str) -> str:
    return f"[{address}]" if ":" in address else address


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Lets a hostile resolver answer: with one answer after the other, the last again and again."""

    def answer_with(*answers: list[str]) -> list[str]:
        asked: list[str] = []

        def getaddrinfo(host: bytes, *_: object, **__: object) -> list[tuple[object, ...]]:
            answer = answers[min(len(asked), len(answers) - 1)]
            asked.append(host.decode())
            return [
                (socket.AF_INET6 if ":" in a else socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, 0))
                for a in answer
            ]

        monkeypatch.setattr("fedsvc.worker.resolver.socket.getaddrinfo", getaddrinfo)
        return asked

    return answer_with


@pytest.mark.parametrize("kind", REFUSED)
async def test_an_address_that_is_not_public_is_refused_in_a_url(kind: str, connected: Connections) -> None:
    for scheme in ("https", "http"):
        async with delivering(allowed_cidrs="") as deliverer:
            result = await deliver(deliverer, f"{scheme}://{shown(REFUSED[kind])}/inbox")
        assert (result.verdict.outcome, result.verdict.reason) == (Outcome.PERMANENT, Reason.ADDRESS_REFUSED)
    assert connected == []


@pytest.mark.parametrize("kind", REFUSED)
async def test_an_address_that_is_not_public_is_refused_as_a_resolvers_answer(
    kind: str, names: Callable[..., list[str]], connected: Connections
) -> None:
    asked = names([REFUSED[kind]])
    async with delivering(allowed_cidrs="") as deliverer:
        result = await deliver(deliverer, "https://inbox.example/inbox")
    assert (result.verdict.outcome, result.verdict.reason) == (Outcome.PERMANENT, Reason.ADDRESS_REFUSED)
    assert (asked, connected) == (["inbox.example"], [])


@pytest.mark.parametrize("host", ODD, ids=ascii)
async def test_an_odd_spelling_leads_nowhere(
    host: str, names: Callable[..., list[str]], connected: Connections
) -> None:
    """Neither as it is, nor in the normal form that the server would make of it, even by a resolver that
    takes any spelling for the address that is meant."""
    names(["127.0.0.1"])
    urls = [f"http://{host}/inbox"]
    with suppress(InvalidInbox):
        urls.append(parse_inbox(urls[0], allow_http=True).url)
    async with delivering(allowed_cidrs="") as deliverer:
        for url in urls:
            verdict = (await deliver(deliverer, url)).verdict
            assert verdict.outcome is Outcome.PERMANENT or verdict.reason is Reason.DNS_NOT_FOUND, verdict
    assert connected == []


@pytest.mark.parametrize(
    "host", [host for host in [*ODD, *map(shown, REFUSED.values())] if host.isprintable()], ids=ascii
)
async def test_a_redirect_there_leads_nowhere(
    host: str, names: Callable[..., list[str]], connected: Connections
) -> None:
    names(["127.0.0.1"])
    answer = b"HTTP/1.1 307 x\r\nContent-Length: 0\r\nLocation: http://%s/\r\n\r\n" % host.encode()
    remote = Remote((answer,))
    # 127.0.0.2 is all that is allowed
    async with accepting(remote.serve, "127.0.0.2") as port, delivering(allowed_cidrs="127.0.0.2/32") as it:
        result = await deliver(it, f"http://127.0.0.2:{port}/inbox")
    verdict = result.verdict
    assert verdict.outcome is Outcome.PERMANENT or verdict.reason is Reason.DNS_NOT_FOUND, verdict
    assert connected == [("127.0.0.2", port)]


@pytest.mark.parametrize(
    "name", ["localhost", "localhost.", "LOCALHOST", "inbox.localhost", "ip6-localhost", "metadata"]
)
async def test_a_name_of_our_own_network_is_refused(
    name: str, names: Callable[..., list[str]], connected: Connections
) -> None:
    names(["127.0.0.1", "::1", "169.254.169.254"])
    async with delivering(allowed_cidrs="") as deliverer:
        assert (await deliver(deliverer, f"http://{name}/")).verdict.reason is Reason.ADDRESS_REFUSED
    assert connected == []


@pytest.mark.parametrize("kind", REFUSED)
async def test_of_a_mixed_answer_only_what_is_allowed_is_connected_to(
    kind: str, names: Callable[..., list[str]], connected: Connections
) -> None:
    names([REFUSED[kind], "127.0.0.2", REFUSED[kind]])
    remote = Remote((ACCEPTED,))
    async with accepting(remote.serve, "127.0.0.2") as port, delivering(allowed_cidrs="127.0.0.2/32") as it:
        assert (await deliver(it, f"http://inbox.example:{port}/")).verdict.status == 202
    assert connected == [("127.0.0.2", port)]


async def test_if_what_is_allowed_does_not_answer_the_rest_is_not_tried(
    names: Callable[..., list[str]], connected: Connections
) -> None:
    names(["127.0.0.2", "127.0.0.3", "169.254.169.254"])
    remote = Remote((ACCEPTED,))
    async with accepting(remote.serve, "127.0.0.3") as port, delivering(allowed_cidrs="127.0.0.2/32") as it:
        result = await deliver(it, f"http://inbox.example:{port}/")
    assert result.verdict.reason is Reason.CONNECT_FAILED
    assert connected == [("127.0.0.2", port)]


@pytest.mark.parametrize("second", ["127.0.0.3", "169.254.169.254", "::1"])
async def test_a_name_that_changes_between_check_and_connect_is_connected_to_where_it_was_checked(
    second: str, names: Callable[..., list[str]], connected: Connections
) -> None:
    asked = names(["127.0.0.2"], [second])
    remote = Remote((b"HTTP/1.1 202 x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",))
    async with (
        accepting(remote.serve, "127.0.0.2", "127.0.0.3") as port,
        delivering(allowed_cidrs="127.0.0.2/32") as deliverer,
    ):
        for _ in range(3):
            result = await deliver(deliverer, f"http://rebind.example:{port}/inbox")
            assert result.verdict.status == 202
    assert connected == [("127.0.0.2", port)] * 3
    # one question, one check, and no other way to ask
    assert asked == ["rebind.example"]


async def test_a_name_that_changes_later_is_checked_again(
    names: Callable[..., list[str]], connected: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedsvc.worker.resolver.TTL_S", 0.0)
    asked = names(["127.0.0.2"], ["127.0.0.3"], ["127.0.0.2"])
    remote = Remote((b"HTTP/1.1 202 x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",))
    async with (
        accepting(remote.serve, "127.0.0.2", "127.0.0.3") as port,
        delivering(allowed_cidrs="127.0.0.2/32") as deliverer,
    ):
        reasons = [
            (await deliver(deliverer, f"http://rebind.example:{port}/inbox")).verdict.reason for _ in range(3)
        ]
    assert reasons == [Reason.OK, Reason.ADDRESS_REFUSED, Reason.OK]
    assert connected == [("127.0.0.2", port)] * 2
    assert len(asked) == 3


async def test_of_an_answer_with_thousands_of_addresses_a_few_are_tried(
    names: Callable[..., list[str]], connected: Connections
) -> None:
    """Else one name makes us knock at whoever its owner names."""
    names([str(ip_address("127.1.0.0") + n) for n in range(4000)])
    async with accepting(Remote((ACCEPTED,)).serve, "127.0.0.2") as port, delivering() as deliverer:
        result = await deliver(deliverer, f"http://many.example:{port}/")
    assert result.verdict.reason is Reason.CONNECT_FAILED
    assert len(connected) <= 20
    assert len(set(connected)) <= 4


@pytest.mark.parametrize("port", [1, 22, 25, 53, 80, 444, 6379, 8443, 50051, 65535])
async def test_another_port_of_a_public_address_is_refused(
    port: int, names: Callable[..., list[str]], connected: Connections
) -> None:
    names(["9.9.9.9", "2620:fe::fe"])
    async with delivering(allowed_cidrs="", allow_http=False) as deliverer:
        for host in ("9.9.9.9", "[2620:fe::fe]", "inbox.example"):
            result = await deliver(deliverer, f"https://{host}:{port}/inbox")
            assert result.verdict.reason is Reason.ADDRESS_REFUSED
    assert connected == []


@pytest.mark.parametrize(
    "name",
    ["a" * 64 + ".example", "a..example", ".example", "a" * 300, "xn--\u00fc.example", "*.example", "_"],
)
async def test_what_is_no_name_ends_in_a_verdict(
    name: str, names: Callable[..., list[str]], connected: Connections
) -> None:
    names(["127.0.0.1"])
    async with delivering(allowed_cidrs="") as deliverer:
        verdict = (await deliver(deliverer, f"https://{name}/inbox")).verdict
    assert verdict.reason in (Reason.ADDRESS_REFUSED, Reason.DNS_NOT_FOUND, Reason.DNS_FAILED)
    assert connected == []
