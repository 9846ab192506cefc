"""A redirect is a new destination: checked as one, signed for, and followed three times at most."""

from __future__ import annotations

import base64
import socket
from typing import Any

import pytest
from servers.certificates import authority, server_context
from servers.remote import ACCEPTED, PRIVATE, Got, Remote, accepting, deliver, delivering, serving

from fedsvc.domain.classify import Outcome
from fedsvc.domain.delivery import Reason
from fedsvc.queue.consumer import Signal
from fedsvc.worker.settlements import signal_of
from hostile.attacks import ATTACKS
from hostile.conftest import Connections


def redirect(location: str, status: int = 307, more: str = "") -> bytes:
    return f"HTTP/1.1 {status} x\r\nLocation: {location}\r\nContent-Length: 0\r\n{more}\r\n".encode("latin-1")


def verify(got: Got, host: str, path: str) -> None:
    """By the draft's text: the signature is over this very request."""
    headers = got.headers
    assert headers["host"] == host
    assert got.head.startswith(f"POST {path} HTTP/1.1\r\n".encode())
    parameters = dict(item.split("=", 1) for item in headers["signature"].split(","))
    signed = [f"{name}: {headers[name]}" for name in ("host", "date", "digest")]
    base = "\n".join([f"(request-target): post {path}", *signed])
    PRIVATE.public_key().verify(base64.b64decode(parameters["signature"].strip('"')), base.encode())


@pytest.fixture
def all_names_are_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(*_: object, **__: object) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))]

    monkeypatch.setattr("fedsvc.worker.resolver.socket.getaddrinfo", getaddrinfo)


@pytest.mark.usefixtures("all_names_are_here")
@pytest.mark.parametrize("status", [307, 308])
async def test_each_hop_is_signed_anew_for_its_own_host(status: int) -> None:
    async with serving(ACCEPTED) as last:
        over = f"http://two.example:{last.port}/b?c=d"
        async with serving(redirect(over, status)) as first, delivering() as deliverer:
            result = await deliver(deliverer, f"http://one.example:{first.port}/a")
    assert result.verdict.status == 202
    verify(first.got[0], f"one.example:{first.port}", "/a")
    verify(last.got[0], f"two.example:{last.port}", "/b?c=d")
    signatures = [got.headers["signature"] for got in (first.got[0], last.got[0])]
    assert signatures[0] != signatures[1]


@pytest.mark.parametrize("hops", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("status", [307, 308])
async def test_a_chain_ends_after_three_hops(hops: int, status: int) -> None:
    chain = [redirect(f"/hop{n}", status) for n in range(hops)]
    async with serving(*chain, ACCEPTED) as remote, delivering() as deliverer:
        result = await deliver(deliverer, remote.url)
    if hops <= 3:
        assert result.verdict.outcome is Outcome.DELIVERED
    else:
        assert (result.verdict.outcome, result.verdict.status) == (Outcome.PERMANENT, status)
        assert result.verdict.reason is Reason.TOO_MANY_REDIRECTS
        assert result.verdict.detail == "more than 3, to /hop3"
        assert result.url == remote.url.replace("inbox", "hop2"), "where the last request went"
        assert signal_of(result.verdict) is Signal.ANSWERED, "its host is there"
    assert len(remote.got) == min(hops, 3) + 1


async def test_a_loop_of_two_hosts_ends() -> None:
    async with serving(b"") as one, serving(b"") as two, delivering() as deliverer:
        one.script = [redirect(two.url)]
        two.script = [redirect(one.url)]
        result = await deliver(deliverer, one.url)
        assert result.verdict.reason is Reason.TOO_MANY_REDIRECTS
        assert (len(one.got), len(two.got)) == (2, 2)


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 305, 306, 309, 399])
async def test_no_other_redirect_is_followed(status: int, connected: Connections) -> None:
    async with serving(ACCEPTED) as target:
        async with serving(redirect(target.url, status)) as remote, delivering() as deliverer:
            verdict = (await deliver(deliverer, remote.url)).verdict
        assert (verdict.outcome, verdict.reason) == (Outcome.PERMANENT, Reason.REDIRECTED)
        assert connected == [("127.0.0.1", remote.port)]


@pytest.mark.parametrize(
    "location",
    [
        "http://169.254.169.254/latest/meta-data/iam/",
        "http://[fd00:ec2::254]/latest/",
        "http://127.0.0.2:6379/",
        "http://9.9.9.9:6379/",
        "http://9.9.9.9:8080/inbox",
        "https://9.9.9.9:22/",
        "//169.254.169.254/",
        "///169.254.169.254/",
        "\\\\169.254.169.254\\",
        "http:169.254.169.254",
        "http:/\\169.254.169.254",
        "file:///etc/passwd",
        "gopher://127.0.0.1:6379/_FLUSHALL",
        "unix:///run/redis.sock",
        "javascript:alert(1)",
        "data:text/plain,x",
        "ws://127.0.0.1/",
        "http://user:password@9.9.9.9/",
        "http://",
        "http://:80/",
        "http://[/",
        "http://9.9.9.9:99999/",
        "http://9.9.9.9:-1/",
        "http://9.9.9.9 .example/",
        "http://9.9.9.9/\x01",
        "http://\xe4\xf6\xfc\xff/",
        "http://9.9.9.9/" + "a" * 4000,
        "http://" + "a." * 2000 + "example/",
    ],
    ids=lambda location: ascii(location[:40]),
)
async def test_a_redirect_to_where_no_delivery_goes_is_permanent(
    location: str, connected: Connections
) -> None:
    async with serving(redirect(location)) as remote, delivering(allowed_cidrs="127.0.0.1/32") as deliverer:
        verdict = (await deliver(deliverer, remote.url)).verdict
    assert verdict.outcome is Outcome.PERMANENT
    # some are relative, and lead in circles
    assert verdict.reason in (Reason.ADDRESS_REFUSED, Reason.REDIRECTED, Reason.TOO_MANY_REDIRECTS)
    assert verdict.detail.isprintable()
    assert connected == [("127.0.0.1", remote.port)]


@pytest.mark.parametrize("first", ["http://127.0.0.1:{port}/x", "HTTP://127.0.0.1:{port}/x"])
async def test_a_redirect_from_https_to_http_is_not_followed(first: str, connected: Connections) -> None:
    ca = authority()
    async with (
        serving(ACCEPTED) as plain,
        serving(b"", tls=server_context(ca.certify("127.0.0.1"))) as remote,
    ):
        remote.script = [redirect(first.format(port=plain.port))]
        async with delivering(ca_file=str(ca.file), allow_http=False) as deliverer:
            verdict = (await deliver(deliverer, f"https://127.0.0.1:{remote.port}/inbox")).verdict
        assert (verdict.outcome, verdict.reason) == (Outcome.PERMANENT, Reason.REDIRECTED)
        assert len(remote.got) == 1
        assert connected == [("127.0.0.1", remote.port)]


@pytest.mark.parametrize("address", ["10.0.0.1", "127.0.0.1", "169.254.169.254", "::1", "fd00::1"])
async def test_a_redirect_to_a_name_of_our_own_network_is_refused(
    address: str, monkeypatch: pytest.MonkeyPatch, connected: Connections
) -> None:
    def getaddrinfo(*_: object, **__: object) -> list[Any]:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return [(family, socket.SOCK_STREAM, 6, "", (address, 0))]

    monkeypatch.setattr("fedsvc.worker.resolver.socket.getaddrinfo", getaddrinfo)
    remote = Remote((redirect("http://intranet.example/"),))
    async with accepting(remote.serve, "127.0.0.2") as port, delivering(allowed_cidrs="127.0.0.2/32") as it:
        verdict = (await deliver(it, f"http://127.0.0.2:{port}/")).verdict
    assert (verdict.outcome, verdict.reason) == (Outcome.PERMANENT, Reason.ADDRESS_REFUSED)
    assert connected == [("127.0.0.2", port)]


async def test_two_locations_lead_to_one_of_them_at_most() -> None:
    async with serving(ACCEPTED) as one, serving(ACCEPTED) as two:
        both = redirect(one.url, more=f"Location: {two.url}\r\n")
        async with serving(both) as remote, delivering() as deliverer:
            await deliver(deliverer, remote.url)
        assert len(one.got) + len(two.got) <= 1


@pytest.mark.parametrize(
    "name", ["silence", "endless header", "slow interim answers", "reset", "slow body", "endless chunks"]
)
async def test_one_deadline_covers_all_hops(name: str) -> None:
    attack = ATTACKS[name]
    async with serving(attack.item) as last, serving(b"") as first:
        first.script = [redirect("/b"), redirect("/c"), redirect(last.url)]
        async with delivering(delivery_timeout=0.6) as deliverer:
            result = await deliver(deliverer, first.url)
    assert (result.verdict.reason, result.verdict.status) == (attack.reason, attack.status)
    assert result.latency_ms < 2600
