"""Signatures come from processes of their own, whatever happens to these."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from fedsvc.domain.keys import PrivateKey, load_private_key, to_storable
from fedsvc.worker import signer as module
from fedsvc.worker.signer import Signer
from fedsvc.worker.signing_process import ANSWER, KEY, NORMAL, REQUEST, URGENT, SigningProcess


class Key:
    """An RSA key that counts how often it signs in this process."""

    algorithm = "rsa"

    def __init__(self, key: PrivateKey, *, broken: bool = False) -> None:
        self.fingerprint = key.fingerprint + ("broken" if broken else "")
        self.real, self._key, self.here, self.broken = key, key._key, 0, broken

    def sign(self, data: bytes) -> bytes:
        self.here += 1
        if self.broken:
            raise ValueError("cannot sign this")
        return self.real.sign(data)


@pytest.fixture(scope="module")
def rsa_key(rsa_pem: str) -> PrivateKey:
    return load_private_key(rsa_pem)


@pytest.fixture
def key(rsa_key: PrivateKey) -> Any:
    return Key(rsa_key)


@pytest.fixture
async def signer() -> AsyncIterator[Signer]:
    signer = Signer(1, 2)
    yield signer
    signer.close()


async def many(signer: Signer, key: Any, count: int = 60) -> None:
    """Asks for `count` signatures at once; all are right."""
    wanted = [b"%d" % n for n in range(count)]
    given = await asyncio.gather(*(signer.sign(key, data) for data in wanted))
    assert given == [key.real.sign(data) for data in wanted]


async def ready(signer: Signer, key: Any, processes: int = 1) -> list[int]:
    """Has so many processes started; returns their ids."""
    async with asyncio.timeout(60):
        while sum(each.ready for each in signer._processes) < processes:
            signer._not_before = 0.0  # the time between two starts has passed
            await many(signer, key)
    return [each._process.pid for each in signer._processes]


async def test_the_only_signature_that_is_asked_for_is_made_in_place(signer: Signer, key: Any) -> None:
    for n in range(5):
        assert await signer.sign(key, b"%d" % n) == key.real.sign(b"%d" % n)
    assert key.here == 5
    assert not signer._processes


async def test_ed25519_signatures_are_made_in_place(signer: Signer) -> None:
    pem = ed25519.Ed25519PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    key = load_private_key(pem)
    given = await asyncio.gather(*(signer.sign(key, b"%d" % n) for n in range(100)))
    assert given == [key.sign(b"%d" % n) for n in range(100)]
    assert not signer._processes


async def test_many_are_signed_elsewhere_as_soon_as_a_process_is_ready(signer: Signer, key: Any) -> None:
    await ready(signer, key)
    before = key.here
    await many(signer, key, 200)
    assert key.here == before


async def test_a_second_process_is_started_when_the_first_has_much_before_it(key: Any) -> None:
    signer = Signer(2, 2)
    first, second = await ready(signer, key, 2)
    assert first != second
    await many(signer, key, 200)
    await ready(signer, key, 2)
    assert len(signer._processes) == 2, "no more than it may have"
    signer.close()


async def test_a_process_that_is_killed_loses_no_signature_and_is_replaced(signer: Signer, key: Any) -> None:
    (pid,) = await ready(signer, key)
    asked = asyncio.create_task(many(signer, key, 200))
    async with asyncio.timeout(60):
        while not len(signer._processes[0]):
            await asyncio.sleep(0)
    os.kill(pid, signal.SIGKILL)
    await asked
    assert await ready(signer, key) != [pid]


async def test_a_process_that_falls_silent_loses_no_signature_and_is_replaced(
    signer: Signer, key: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module._Process, "SILENCE", 1.0)
    (pid,) = await ready(signer, key)
    os.kill(pid, signal.SIGSTOP)
    async with asyncio.timeout(60):
        await many(signer, key, 200)
    assert await ready(signer, key) != [pid]


async def test_a_process_that_never_begins_is_given_up(
    signer: Signer, key: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module._Process, "SILENCE", 1.0)
    hanging = tmp_path / "python"
    hanging.write_text("#!/bin/sh\nexec sleep 600\n")
    hanging.chmod(0o700)
    with monkeypatch.context() as patched:
        patched.setattr(sys, "executable", str(hanging))
        await many(signer, key)
    (silent,) = signer._processes
    async with asyncio.timeout(60):
        while signer._processes:
            await asyncio.sleep(0.05)
    assert silent.code == -signal.SIGKILL
    await ready(signer, key)


async def test_a_process_that_cannot_be_reached_is_given_up(
    signer: Signer, key: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no more descriptors")

    with monkeypatch.context() as patched:
        patched.setattr(signer._loop, "create_unix_connection", refuse)
        await many(signer, key)
    assert not signer._processes
    await ready(signer, key)


async def test_who_ends_all_processes_of_a_group_does_not_take_the_signatures_away(
    signer: Signer, key: Any
) -> None:
    (pid,) = await ready(signer, key)
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(pid, number)
    before = key.here
    await many(signer, key, 200)
    assert key.here == before


async def test_a_key_that_cannot_sign_fails_its_caller_and_nobody_else(
    signer: Signer, key: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ready(signer, key)
    monkeypatch.setattr(module, "to_storable", lambda key: b"no key" if key.broken else to_storable(key))
    broken: Any = Key(key.real, broken=True)
    asked = [signer.sign(each, b"x") for _ in range(10) for each in (key, broken)]
    given = await asyncio.gather(*asked, return_exceptions=True)
    assert given[::2] == [key.real.sign(b"x")] * 10
    assert all(isinstance(each, ValueError) for each in given[1::2])


async def test_a_caller_that_is_cancelled_does_not_hold_up_the_others(signer: Signer, key: Any) -> None:
    await ready(signer, key)
    asked = [asyncio.create_task(signer.sign(key, b"%d" % n)) for n in range(50)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    for task in asked[::2]:
        task.cancel()
    given = await asyncio.gather(*asked, return_exceptions=True)
    assert all(isinstance(each, asyncio.CancelledError) for each in given[::2])
    assert given[1::2] == [key.real.sign(b"%d" % n) for n in range(1, 50, 2)]
    await many(signer, key)


async def test_more_keys_than_a_process_holds(
    signer: Signer, key: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SLOTS", 2)
    await ready(signer, key)
    keys: list[Any] = [key] + [Key(load_private_key(_new_pem())) for _ in range(2)]
    for _ in range(3):
        await asyncio.gather(*(many(signer, each, 5) for each in keys))
    assert len(signer._processes[0]._slots) == 2


async def test_where_no_process_can_be_started_signatures_are_made_in_place(
    signer: Signer, key: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", refused)
    await many(signer, key, 100)
    assert key.here == 100
    assert not signer._processes


async def test_closing_ends_the_processes_and_tells_who_still_waits(key: Any) -> None:
    signer = Signer(1, 2)
    await ready(signer, key)
    process = signer._processes[0]._process
    process.send_signal(signal.SIGSTOP)  # else it may have signed some by then
    asked = [asyncio.create_task(signer.sign(key, b"%d" % n)) for n in range(200)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    late = asyncio.create_task(signer.sign(key, b"late"))
    await asyncio.sleep(0)
    signer.close()
    assert process.returncode is not None
    given = await asyncio.gather(*asked, late, return_exceptions=True)
    assert all(isinstance(each, RuntimeError) for each in given)
    with pytest.raises(RuntimeError, match="closed"):
        await signer.sign(key, b"x")


def test_a_process_ends_with_its_worker() -> None:
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "fedsvc.worker.signing_process", str(theirs.fileno()), "2"]
    with subprocess.Popen(command, pass_fds=(theirs.fileno(),)) as process, theirs:
        ours.settimeout(60)
        assert ours.recv(100) == ANSWER.pack(0, 0)
        theirs.close()
        ours.close()
        assert process.wait(60) == 0


@contextmanager
def serving(threads: int = 1) -> Iterator[socket.socket]:
    """A SigningProcess with so many threads, in one of ours, which has said that it is ready."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        thread = threading.Thread(target=SigningProcess(theirs, threads).run)
        thread.start()
        ours.settimeout(60)
        assert ours.recv(ANSWER.size) == ANSWER.pack(0, 0)
        yield ours
        ours.shutdown(socket.SHUT_WR)
        thread.join(60)
        assert not thread.is_alive()


def answers(connection: socket.socket, count: int) -> dict[int, bytes]:
    """By number, in the order in which they came."""
    with connection.makefile("rb") as file:
        found = {}
        for _ in range(count):
            number, length = ANSWER.unpack(file.read(ANSWER.size))
            found[number] = file.read(length)
    return found


def jobs(*kinds: int) -> bytes:
    """Numbered from 1, each of other data."""
    return b"".join(
        REQUEST.pack(kind, 0, number, sha256(b"%d" % number).digest()) for number, kind in enumerate(kinds, 1)
    )


def given(der: bytes) -> bytes:
    return REQUEST.pack(KEY, 0, len(der), b"") + der


def test_what_is_urgent_passes_what_waits(rsa_key: PrivateKey) -> None:
    with serving() as connection:
        connection.sendall(given(to_storable(rsa_key)) + jobs(*[NORMAL] * 20, URGENT))
        told = answers(connection, 21)
    assert next(iter(told)) == 21
    assert told == {n: rsa_key.sign(b"%d" % n) for n in range(1, 22)}


def test_threads_of_a_process_sign_at_the_same_time(
    rsa_key: PrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    together, real = threading.Barrier(3), PrivateKey.sign_digest

    def sign_digest(key: PrivateKey, digest: bytes) -> bytes:
        together.wait(60)  # for two more that are about to sign
        return real(key, digest)

    monkeypatch.setattr(PrivateKey, "sign_digest", sign_digest)
    with serving(threads=3) as connection:
        connection.sendall(given(to_storable(rsa_key)) + jobs(*[NORMAL] * 3))
        told = answers(connection, 3)
    assert told == {n: rsa_key.sign(b"%d" % n) for n in range(1, 4)}


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_no_answer_waits_for_the_next_request(rsa_key: PrivateKey, threads: int) -> None:
    with serving(threads) as connection:
        connection.sendall(given(to_storable(rsa_key)))
        for count in range(1, 40):
            connection.sendall(jobs(*[NORMAL] * count))
            assert sorted(answers(connection, count)) == list(range(1, count + 1))


def test_requests_may_come_in_pieces(rsa_key: PrivateKey) -> None:
    requests = given(to_storable(rsa_key)) + jobs(NORMAL, NORMAL)
    with serving() as connection:
        for at in range(len(requests)):
            connection.sendall(requests[at : at + 1])
        told = answers(connection, 2)
    assert told == {n: rsa_key.sign(b"%d" % n) for n in (1, 2)}


@pytest.mark.parametrize("der", [b"", b"no key", b"\x30\x82\xff\xff" + bytes(100)])
def test_a_key_that_cannot_be_read_signs_nothing(rsa_key: PrivateKey, der: bytes) -> None:
    with serving() as connection:
        connection.sendall(given(der) + jobs(NORMAL))
        assert answers(connection, 1) == {1: b""}
        connection.sendall(given(to_storable(rsa_key)) + jobs(NORMAL))
        assert answers(connection, 1) == {1: rsa_key.sign(b"1")}


def _new_pem() -> bytes:
    key = rsa.generate_private_key(65537, 2048)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


class Unwell:
    """A socket that fails to send its answers once, as when the kernel has no memory for them."""

    def __init__(self, real: socket.socket) -> None:
        self._real, self._sent = real, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def sendall(self, data: bytes) -> None:
        self._sent += 1
        if self._sent == 2:  # the first says that it is ready
            raise OSError(errno.ENOBUFS, "No buffer space available")
        self._real.sendall(data)


def test_a_process_of_which_a_thread_is_lost_ends(rsa_key: PrivateKey) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(10)
        unwell: Any = Unwell(theirs)
        thread = threading.Thread(target=SigningProcess(unwell, 2).run)
        thread.start()
        assert ours.recv(ANSWER.size) == ANSWER.pack(0, 0)
        ours.sendall(given(to_storable(rsa_key)) + jobs(*[NORMAL] * 40))
        while ours.recv(65_536):
            pass
        thread.join(10)
        assert not thread.is_alive()
