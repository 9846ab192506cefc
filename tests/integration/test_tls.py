"""TLS of the gRPC side: who is trusted, and certificates that change while the server runs."""

from __future__ import annotations

import asyncio
import gc
import os
import ssl
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID
from fedsvc_client import TLS, AsyncFedsvcClient, ClientClosed, FedsvcClient, Unavailable
from servers.certificates import Authority, authority
from servers.front import front

from fedsvc.config import Settings
from fedsvc.errors import ConfigurationError
from fedsvc.server import tls as module
from fedsvc.server.caller import Caller
from fedsvc.server.tokens import entry_text, new_token
from fedsvc.watched_files import LOOK_EVERY, WatchedFiles

TOKEN = new_token()
OURS, THEIRS = authority("ours"), authority("theirs")
Start = Callable[..., Any]


def install(directory: Path, issuer: Authority, *, common_name: str = "server") -> None:
    """The server's certificate and key; both at once, as a mounted secret changes."""
    fresh = issuer.certify("127.0.0.1", "localhost", common_name=common_name)
    for name in ("cert.pem", "key.pem"):
        (directory / "next").write_bytes(fresh.read_bytes())
        (directory / "next").rename(directory / name)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    install(tmp_path, OURS)
    return tmp_path


@pytest.fixture
def start(environment: dict[str, str], files: Path) -> Start:
    @asynccontextmanager
    async def with_settings(**more: str) -> AsyncIterator[str]:
        settings = environment | {
            "FEDSVC_TOKENS": entry_text(Caller("admin"), TOKEN),
            "FEDSVC_TLS_CERT": str(files / "cert.pem"),
            "FEDSVC_TLS_KEY": str(files / "key.pem"),
            **{f"FEDSVC_{name.upper()}": value for name, value in more.items()},
        }
        async with front(Settings.from_environment(settings)) as server:
            yield server.target.replace("0.0.0.0", "127.0.0.1")

    return with_settings


async def ask(target: str, tls: TLS | bool, *, timeout: float = 5.0) -> int:
    async with AsyncFedsvcClient(target, TOKEN, timeout=timeout, tls=tls) as client:
        return (await client.get_queue_stats()).accepted


async def refused(target: str, tls: TLS | bool) -> None:
    with pytest.raises(Unavailable):
        await ask(target, tls, timeout=1.0)


async def name_of(target: str) -> str:
    """Common name of the certificate that is shown now."""
    host, _, port = target.rpartition(":")
    context = ssl.create_default_context(cafile=OURS.file)
    _, writer = await asyncio.open_connection(host, int(port), ssl=context)
    shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    (attribute,) = x509.load_der_x509_certificate(shown).subject
    return str(attribute.value)


async def test_a_server_that_others_reach_is_trusted_by_its_authority_only(start: Start) -> None:
    async with start(listen="0.0.0.0:0") as target:  # with tokens and TLS it may
        assert await ask(target, TLS(ca_file=OURS.file)) == 0
        await refused(target, TLS(ca_file=THEIRS.file))
        await refused(target, True)
        await refused(target, False)

        def blocking() -> int:
            with FedsvcClient(target, TOKEN, timeout=5.0, tls=TLS(ca_file=OURS.file)) as client:
                return client.get_queue_stats().accepted

        assert await asyncio.to_thread(blocking) == 0


@pytest.mark.parametrize("kind", [FedsvcClient, AsyncFedsvcClient])
async def test_a_client_whose_side_alone_speaks_tls_or_does_not_says_so(
    start: Start, environment: dict[str, str], kind: type[Any]
) -> None:
    async def problem(target: str, tls: TLS | bool) -> str:
        def blocking() -> None:
            with FedsvcClient(target, TOKEN, timeout=1.0, tls=tls) as client:
                client.get_queue_stats()

        with pytest.raises(Unavailable) as failed:
            await (asyncio.to_thread(blocking) if kind is FedsvcClient else ask(target, tls, timeout=1.0))
        return str(failed.value)

    async with start() as target:
        assert (await problem(target, False)).endswith("if it speaks TLS, set tls)")
        assert "speak" not in await problem(target, TLS(ca_file=THEIRS.file)), "that is another problem"
    async with front(Settings.from_environment(environment)) as plain:
        ours = TLS(ca_file=OURS.file)
        assert (await problem(plain.target, ours)).endswith("does not speak TLS, which tls turns on)")
    assert "speak" not in await problem(plain.target, False), "nobody is there any more"


async def test_with_mutual_tls_only_clients_of_the_authority_come_in(start: Start, tmp_path: Path) -> None:
    usage = ExtendedKeyUsageOID.CLIENT_AUTH
    own = OURS.certify(common_name="piefed", usage=usage)
    foreign = THEIRS.certify(common_name="piefed", usage=usage)
    async with start(tls_client_ca=str(OURS.file)) as target:
        assert await ask(target, TLS(ca_file=OURS.file, cert_file=own, key_file=own)) == 0
        await refused(target, TLS(ca_file=OURS.file))
        await refused(target, TLS(ca_file=OURS.file, cert_file=foreign, key_file=foreign))


async def test_the_authorities_of_clients_are_read_again_when_they_change(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(module, "WatchedFiles", lambda paths: WatchedFiles(paths, lambda: now))
    usage = ExtendedKeyUsageOID.CLIENT_AUTH
    shown = [issuer.certify(common_name="piefed", usage=usage) for issuer in (OURS, THEIRS)]
    own, foreign = (TLS(ca_file=OURS.file, cert_file=file, key_file=file) for file in shown)
    trusted = tmp_path / "clients.pem"
    trusted.write_bytes(OURS.file.read_bytes())
    async with start(tls_client_ca=str(trusted)) as target:
        assert await ask(target, own) == 0
        await refused(target, foreign)
        trusted.write_bytes(OURS.file.read_bytes() + THEIRS.file.read_bytes())
        now += LOOK_EVERY
        for certificate in (own, foreign):
            assert await ask(target, certificate) == 0
        trusted.write_bytes(THEIRS.file.read_bytes())
        now += LOOK_EVERY
        assert await ask(target, foreign) == 0
        await refused(target, own)


async def test_certificates_are_read_again_when_they_change_and_bad_ones_are_not_taken(
    start: Start, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(module, "WatchedFiles", lambda paths: WatchedFiles(paths, lambda: now))
    async with start() as target:
        assert await name_of(target) == "server"
        async with AsyncFedsvcClient(target, TOKEN, timeout=5.0, tls=TLS(ca_file=OURS.file)) as client:
            await client.get_queue_stats()
            install(files, OURS, common_name="second")
            assert await name_of(target) == "server", "it was looked at just now"
            now += LOOK_EVERY
            assert await name_of(target) == "second"
            good = (files / "cert.pem").read_bytes()
            for bad in (b"", b"nonsense", OURS.certify("127.0.0.1").read_bytes(), None):
                if bad is None:
                    (files / "cert.pem").unlink()
                else:  # the key of another certificate
                    (files / "cert.pem").write_bytes(bad)
                now += LOOK_EVERY
                assert await name_of(target) == "second"
            (files / "cert.pem").write_bytes(good)
            install(files, OURS, common_name="third")
            now += LOOK_EVERY
            assert await name_of(target) == "third"
            await client.get_queue_stats()  # who was connected has noticed nothing


def test_certificates_that_change_while_they_are_read_are_read_again(
    files: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(module, "WatchedFiles", lambda paths: WatchedFiles(paths, lambda: now))
    tls = {"FEDSVC_TLS_CERT": str(files / "cert.pem"), "FEDSVC_TLS_KEY": str(files / "key.pem")}
    certificates = module.Certificates(Settings.from_environment(environment | tls))
    read = certificates._read

    def slowly() -> Any:
        found = read()
        install(files, OURS, common_name="third")
        return found

    install(files, OURS, common_name="second")
    for reading, changed in ((slowly, True), (read, True), (read, False)):
        monkeypatch.setattr(certificates, "_read", reading)
        now += LOOK_EVERY
        assert (certificates.changed() is not None) == changed


@pytest.mark.parametrize(
    ("settings", "variable"),
    [
        ({"tls_key": ""}, "FEDSVC_TLS_KEY"),
        ({"tls_cert": ""}, "FEDSVC_TLS_CERT"),
        ({"tls_cert": "/nonexistent"}, "FEDSVC_TLS_CERT"),
        ({"tls_client_ca": "/nonexistent"}, "FEDSVC_TLS_CLIENT_CA"),
        ({"tls_client_ca": os.devnull}, "FEDSVC_TLS_CLIENT_CA"),
        ({"tls_key": str(OURS.certify("127.0.0.1"))}, "FEDSVC_TLS_CERT"),
        ({"tls_cert": "", "tls_key": "", "tls_client_ca": str(OURS.file)}, "FEDSVC_TLS_CLIENT_CA"),
    ],
)
async def test_settings_that_do_not_go_together_are_named(
    start: Start, settings: dict[str, str], variable: str
) -> None:
    with pytest.raises(ConfigurationError, match=variable):
        async with start(**settings):
            pass


async def test_a_key_with_a_password_is_named_and_nobody_is_asked_for_it(start: Start, files: Path) -> None:
    key = load_pem_private_key((files / "key.pem").read_bytes(), None)
    locked = files / "locked.pem"
    locked.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"abcd")))
    with pytest.raises(ConfigurationError, match=f"FEDSVC_TLS_KEY: {locked} is encrypted"):
        async with start(tls_key=str(locked)):
            pass


def test_a_certificate_file_has_its_key() -> None:
    """What the tests take for granted of the certificates that they make."""
    made = OURS.certify("127.0.0.1").read_bytes()
    public = x509.load_pem_x509_certificate(made).public_key()
    assert load_pem_private_key(made, None).public_key() == public


@pytest.fixture
def ours_and_theirs(files: Path) -> Callable[[Authority], None]:
    """Has the server show what this authority has certified, and clients trust that alone."""

    def install_all(issuer: Authority) -> None:
        install(files, issuer)
        (files / "ca.pem").write_bytes(issuer.file.read_bytes())

    install_all(OURS)
    return install_all


@pytest.mark.parametrize("kind", [FedsvcClient, AsyncFedsvcClient])
async def test_a_client_reads_its_files_again_when_the_server_has_come_back_with_others(
    start: Start, files: Path, ours_and_theirs: Callable[[Authority], None], kind: Any
) -> None:
    client: Any = None
    former: list[Any] = []

    async def asked() -> None:
        answer = client.get_queue_stats
        await (asyncio.to_thread(answer) if kind is FedsvcClient else answer())

    listen = "127.0.0.1:0"
    for issuer in (OURS, THEIRS, OURS):
        ours_and_theirs(issuer)
        async with start(listen=listen) as listen:
            client = client or kind(listen, TOKEN, timeout=10.0, tls=TLS(ca_file=files / "ca.pem"))
            await asked()
            gc.collect()
            assert [one() for one in former] == [None] * len(former), "nobody uses them any more"
            former.append(weakref.ref(client._connections.get()))
    (files / "ca.pem").write_bytes(b"")
    install(files, OURS, common_name="again")
    async with start(listen=listen):
        await asked()  # with what it had: the new file cannot be used yet
    closing = client.close()
    if closing is not None:
        await closing


@pytest.mark.parametrize("kind", [FedsvcClient, AsyncFedsvcClient])
async def test_what_is_under_way_on_a_connection_goes_on_there_when_another_takes_its_place(
    start: Start, files: Path, ours_and_theirs: Callable[[Authority], None], kind: Any
) -> None:
    async with start() as target:
        client = kind(target, TOKEN, timeout=10.0, tls=TLS(ca_file=files / "ca.pem"))
        stream = client.watch_queue_stats()

        async def following() -> None:
            await (asyncio.to_thread(next, stream) if kind is FedsvcClient else anext(stream))

        await following()
        former = client._connections.get()
        ours_and_theirs(OURS)
        client._connections.renew()
        assert client._connections.get() is not former
        await following()
        assert client.retries == 0
        closing = client.close()
        if closing is not None:
            await closing
        with pytest.raises(ClientClosed):
            await following()
