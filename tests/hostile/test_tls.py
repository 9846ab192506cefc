"""Servers whose TLS is not as it must be: TLS_FAILED, tried again, and it counts against the host."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import ssl
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from servers.certificates import authority, bundle, self_signed, server_context
from servers.remote import ACCEPTED, PATIENCE, Act, Item, accepting, deliver, delivering, drip, pour, serving

from fedsvc.domain.classify import Outcome
from fedsvc.domain.delivery import Reason
from fedsvc.worker.deliverer import AttemptResult
from fedsvc.worker.dialer import ResumingContext
from hostile.attacks import ATTACKS

CA = authority()
HOST = "inbox.remote.example"


@pytest.fixture(autouse=True)
def all_names_are_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(*_: object, **__: object) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))]

    monkeypatch.setattr("fedsvc.worker.resolver.socket.getaddrinfo", getaddrinfo)


def failed(result: AttemptResult) -> None:
    verdict = result.verdict
    assert (verdict.outcome, verdict.reason) == (Outcome.RETRY, Reason.TLS_FAILED), verdict
    assert verdict.counts_against_host
    assert verdict.detail
    assert verdict.detail.isprintable()


async def sent(port: int, host: str = HOST, ca_file: Path = CA.file, **changes: Any) -> AttemptResult:
    async with delivering(ca_file=str(ca_file), allow_http=False, **changes) as deliverer:
        return await deliver(deliverer, f"https://{host}:{port}/inbox")


#: certificates that a server for HOST must not get away with
BAD = {
    "expired": lambda: CA.certify(HOST, days=(-2, -1)),
    "not valid yet": lambda: CA.certify(HOST, days=(1, 2)),
    "for another host": lambda: CA.certify("other.example"),
    "for a host below": lambda: CA.certify(f"a.{HOST}"),
    "for the domain above": lambda: CA.certify("remote.example"),
    "for a wildcard below": lambda: CA.certify(f"*.{HOST}"),
    "for a wildcard of all": lambda: CA.certify("*", "*.example", "*.*.example"),
    "for a wildcard of a part": lambda: CA.certify("in*.remote.example"),
    "for a wildcard in the middle": lambda: CA.certify("inbox.*.example"),
    "for the address only": lambda: CA.certify("127.0.0.1"),
    "for the name in the common name only": lambda: CA.certify(common_name=HOST),
    "for another, with the name in the common name": lambda: CA.certify("a.example", common_name=HOST),
    "for clients only": lambda: CA.certify(HOST, usage=ExtendedKeyUsageOID.CLIENT_AUTH),
    "self-signed": lambda: self_signed(HOST),
    "of an unknown authority": lambda: authority("nobody").certify(HOST),
    "of an authority of the same name": lambda: authority("an authority", (-3, 3)).certify(HOST),
    "of an authority that is none": lambda: CA.subordinate(ca=False).certify(HOST),
    "of an authority that expired": lambda: CA.subordinate(days=(-2, -1)).certify(HOST),
    "of an authority that is not shown": lambda: _without_chain(),
    "with a key that is too short": lambda: CA.certify(HOST, key=rsa.generate_private_key(65537, 1024)),
}


def _without_chain() -> Path:
    between = CA.subordinate()
    return type(between)(between.certificate, between.key, between.file).certify(HOST)


@pytest.mark.parametrize("kind", BAD)
async def test_a_certificate_that_does_not_hold_is_refused(kind: str) -> None:
    async with serving(ACCEPTED, tls=server_context(BAD[kind](), ["DEFAULT@SECLEVEL=0"])) as remote:
        failed(await sent(remote.port))
        assert remote.got == []


@pytest.mark.parametrize("kind", ["name", "wildcard", "address", "through another"])
async def test_a_certificate_of_the_private_authority_is_accepted(kind: str) -> None:
    host = "127.0.0.1" if kind == "address" else HOST
    certificate = {
        "name": lambda: CA.certify("a.example", HOST),
        "wildcard": lambda: CA.certify("*.remote.example"),
        "address": lambda: CA.certify("127.0.0.1"),
        "through another": lambda: CA.subordinate().certify(HOST),
    }[kind]()
    async with serving(ACCEPTED, tls=server_context(certificate)) as remote:
        assert (await sent(remote.port, host)).verdict.status == 202
        assert (await sent(remote.port, host, bundle(authority("other"), CA))).verdict.status == 202
        failed(await sent(remote.port, host, authority("other").file))
        async with delivering() as deliverer:  # the system's store alone
            failed(await deliver(deliverer, f"https://{host}:{remote.port}/inbox"))
    assert len(remote.got) == 2


async def test_an_address_that_is_not_in_the_certificate_is_refused() -> None:
    async with serving(ACCEPTED, tls=server_context(CA.certify(HOST, "127.0.0.2"))) as remote:
        failed(await sent(remote.port, "127.0.0.1"))
        assert remote.got == []


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
async def test_a_server_that_speaks_old_tls_only_is_refused(version: ssl.TLSVersion) -> None:
    context = server_context(CA.certify(HOST), ["ALL@SECLEVEL=0"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = version
        context.maximum_version = version
    async with serving(ACCEPTED, tls=context) as remote:
        failed(await sent(remote.port))
        assert remote.got == []


@pytest.mark.parametrize("cipher", ["NULL", "aNULL"])
async def test_a_server_without_encryption_or_identity_is_refused(cipher: str) -> None:
    context = server_context(CA.certify(HOST), [f"{cipher}@SECLEVEL=0"])
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with serving(ACCEPTED, tls=context) as remote:
        failed(await sent(remote.port))


async def test_a_server_of_tls_1_2_and_one_of_1_3_are_delivered_to() -> None:
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = server_context(CA.certify(HOST))
        context.minimum_version = context.maximum_version = version
        async with serving(ACCEPTED, tls=context) as remote:
            assert (await sent(remote.port)).verdict.status == 202


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_session_that_is_resumed_again_and_again_ends_in_time(
    version: ssl.TLSVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a host that is spoken to often would never have to show its certificate again."""
    now = 1_000_000.0
    monkeypatch.setattr("fedsvc.worker.dialer.time", SimpleNamespace(monotonic=lambda: now))
    reused: list[bool] = []

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reused.append(writer.get_extra_info("ssl_object").session_reused)
        await reader.readuntil(b"}")
        writer.write(ACCEPTED)
        await reader.read()  # until it leaves

    context = server_context(CA.certify(HOST))
    context.minimum_version = context.maximum_version = version
    async with (
        accepting(once, tls=context) as port,
        delivering(ca_file=str(CA.file), allow_http=False) as deliverer,
    ):
        url = f"https://{HOST}:{port}/inbox"
        for _ in range(3):
            assert (await deliver(deliverer, url)).verdict.status == 202
            deliverer._transport._drop_idle()
            now += 0.4 * ResumingContext.LIFETIME_S
        assert reused == [False, True, True]
        context.load_cert_chain(CA.certify("other.example"))
        failed(await deliver(deliverer, url))


def saying(first: bytes) -> Act:
    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(first)
        await writer.drain()

    return act


#: what a server says to a ClientHello that is no handshake
NO_HANDSHAKE = {
    "plain HTTP": saying(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"),
    "SSH": saying(b"SSH-2.0-OpenSSH_9.9\r\n"),
    "zeros": saying(b"\0" * 100),
    "an alert": saying(b"\x15\3\3\0\2\2\x28"),
    "an alert of its version": saying(b"\x15\3\1\0\2\2\x46"),
    "an alert that is no error": saying(b"\x15\3\3\0\2\1\0"),
    "a record of 64 KB": saying(b"\x16\3\3\xff\xff" + b"\2" * 65_535),
    "a handshake of 16 MB": saying(b"\x16\3\3\x40\0\2\xff\xff\xff" + b"a" * 16_380),
    "application data": saying(b"\x17\3\3\0\5hello"),
    "SSLv2": saying(b"\x80\x2e\4\0\0\0\2\0\0\0"),
    "garbage without end": pour(b"", b"garbage"),
    "records without end": pour(b"", b"\x14\3\3\0\1\1"),
}


@pytest.mark.parametrize("name", NO_HANDSHAKE)
async def test_what_is_no_handshake_fails_as_tls(name: str) -> None:
    async with accepting(NO_HANDSHAKE[name]) as port:
        failed(await sent(port))


@pytest.mark.parametrize("name", ["closes", "resets", "drips"])
async def test_a_handshake_that_breaks_off_counts_against_the_host(name: str) -> None:
    async def closes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)

    async def resets(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.transport.abort()

    acts = {"closes": closes, "resets": resets, "drips": drip(b"\x16\3\3\x40\0", b"\2")}
    async with accepting(acts[name]) as port:
        result = await sent(port, connect_timeout=0.4)
    if name == "drips":
        verdict = result.verdict
        assert (verdict.reason, verdict.counts_against_host) == (Reason.CONNECT_TIMEOUT, True)
        assert result.latency_ms < 2400
    else:
        failed(result)


async def test_a_handshake_that_is_given_up_at_any_moment_disturbs_no_other_connection() -> None:
    context = server_context(CA.certify(HOST))
    async with (
        serving(ACCEPTED, tls=context) as remote,
        delivering(ca_file=str(CA.file), allow_http=False) as deliverer,
    ):
        url = f"https://{HOST}:{remote.port}/inbox"
        await deliver(deliverer, url)
        for turns in range(40):
            deliverer._transport._drop_idle()
            given_up = asyncio.create_task(deliver(deliverer, url))
            for _ in range(turns):
                await asyncio.sleep(0)
            given_up.cancel()
            await asyncio.wait([given_up])
            deliverer._transport._drop_idle()
            assert (await deliver(deliverer, url)).verdict.status == 202
    gc.collect()  # it tells of connections that nobody has closed


async def test_a_server_that_wants_a_certificate_of_ours_is_told_apart_from_a_defect() -> None:
    context = server_context(CA.certify(HOST))
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(CA.file)
    async with serving(ACCEPTED, tls=context) as remote:
        verdict = (await sent(remote.port)).verdict
    assert (verdict.outcome, verdict.counts_against_host) == (Outcome.RETRY, True)
    assert verdict.reason in (Reason.TLS_FAILED, Reason.CONNECTION_RESET)


@pytest.mark.parametrize(
    "name",
    ["silence", "endless interim answers", "endless header", "endless chunks", "endless body without length"],
)
async def test_an_attack_inside_tls_ends_the_same_and_so_does_its_connection(name: str) -> None:
    """Also if the server neither answers the close nor stops to send."""
    attack = ATTACKS[name]
    ended = asyncio.Event()

    async def tell(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        item: Item = attack.item
        assert callable(item)
        try:
            await item(reader, writer)
        finally:
            ended.set()

    async with (
        serving(tell, tls=server_context(CA.certify(HOST))) as remote,
        delivering(ca_file=str(CA.file), delivery_timeout=0.6) as deliverer,
    ):
        result = await deliver(deliverer, f"https://{HOST}:{remote.port}/inbox")
        assert (result.verdict.reason, result.verdict.status) == (attack.reason, attack.status)
        async with asyncio.timeout(PATIENCE):
            await ended.wait()


async def test_garbage_inside_tls_is_a_reset_or_a_failure_of_tls() -> None:
    async def spoil(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raw = writer.get_extra_info("socket")
        with socket.socket(fileno=os.dup(raw.fileno())) as below:
            below.send(b"\x17\3\3\0\x20" + b"a" * 32)
        await reader.read()

    async with serving(spoil, tls=server_context(CA.certify(HOST))) as remote:
        verdict = (await sent(remote.port)).verdict
    assert verdict.reason in (Reason.CONNECTION_RESET, Reason.TLS_FAILED)
    assert (verdict.outcome, verdict.counts_against_host) == (Outcome.RETRY, True)
