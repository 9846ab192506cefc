"""The key that encrypts stored keys is changed for another, while all processes run."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import pytest
from servers.key_ring import ADA, KeyRing, fresh
from structlog.testing import capture_logs

from fedsvc.config import Settings
from fedsvc.domain.keys import KeyCipher, registered_name
from fedsvc.errors import KeyUnavailable, QueueUnavailable
from fedsvc.queue.key_keeper import KeyKeeper
from fedsvc.queue.watched_cipher import SETTLED_S, WatchedCipher
from fedsvc.watched_files import LOOK_EVERY


async def test_all_keys_are_encrypted_anew_when_the_first_encryption_key_is_another(
    ring: KeyRing, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = KeyCipher.generate(), KeyCipher.generate()
    ring.open(KeyCipher.from_setting(old))
    keys = {f"https://me.example/u/{n}#k": fresh() for n in range(250)}
    for key_id, key in keys.items():
        await ring.registry.put(key_id, key)
    called = fresh()
    await ring.store.ensure(called)
    assert await ring.keeper.encrypt_anew() == 0
    ring.open(KeyCipher.from_setting(f"{new},{old}"))
    assert (await ring.store.fetch(called.fingerprint)).fingerprint == called.fingerprint
    assert await ring.keeper.census() == (0, 251, 0)
    assert await ring.keeper.encrypt_anew() == 251
    assert await ring.keeper.census() == (251, 0, 0)
    assert await ring.keeper.encrypt_anew() == 0
    ring.open(KeyCipher.from_setting(new))  # the old one may go
    for key_id, key in keys.items():
        assert (await ring.store.fetch(registered_name(key_id))).fingerprint == key.fingerprint
    assert (await ring.store.fetch(called.fingerprint)).fingerprint == called.fingerprint
    ring.open(KeyCipher.from_setting(KeyCipher.generate()))
    assert await ring.keeper.encrypt_anew() == 0, "what cannot be opened is left alone"
    assert await ring.keeper.census() == (0, 0, 251)
    ring.open(KeyCipher.from_setting(new))
    await ring.store.fetch(called.fingerprint)


async def test_a_key_that_is_replaced_while_it_is_encrypted_anew_stays_the_new_one(
    ring: KeyRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = KeyCipher.generate(), KeyCipher.generate()
    ring.open(KeyCipher.from_setting(old))
    await ring.registry.put(ADA, fresh())
    late = ring.registry
    ring.open(KeyCipher.from_setting(f"{new},{old}"))
    replacement = fresh()
    decrypt = KeyCipher.decrypt
    opened: list[bytes] = []

    def note(self: KeyCipher, sealed: bytes, *, context: bytes) -> bytes:
        opened.append(sealed)
        return decrypt(self, sealed, context=context)

    monkeypatch.setattr(KeyCipher, "decrypt", note)
    call = ring.queue.link.run

    async def run(script: object, *arguments: object, **named: object) -> object:
        if opened:
            opened.clear()
            await late.put(ADA, replacement)
        return await call(script, *arguments, **named)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(ring.queue.link, "run", run)
        assert await ring.keeper.encrypt_anew() == 0
    assert (await ring.store.fetch(registered_name(ADA))).fingerprint == replacement.fingerprint
    assert await ring.keeper.encrypt_anew() == 1


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_the_encryption_key_is_changed_while_all_processes_run(ring: KeyRing, tmp_path: Path) -> None:
    """At no moment is there a key that one of two processes cannot use, whoever reads the file first."""
    file = tmp_path / "keys"
    old, new = KeyCipher.generate(), KeyCipher.generate()
    file.write_text(old)
    settings = Settings.from_environment({"FEDSVC_KEY_ENCRYPTION_KEYS_FILE": str(file)})
    clocks = Clock(), Clock()
    ciphers = [WatchedCipher(settings, clock=clock) for clock in clocks]
    registered: list[str] = []

    async def both_put_and_both_sign() -> None:
        for cipher in ciphers:
            ring.open(cipher)
            registered.append(f"https://me.example/u/{len(registered)}#k")
            await ring.registry.put(registered[-1], fresh())
        for cipher in ciphers:
            ring.open(cipher)
            for key_id in registered:
                await ring.store.fetch(registered_name(key_id))

    await both_put_and_both_sign()
    file.write_text(f"{new},{old}")
    for clock in (clocks[0], clocks[1]):
        clock.now += LOOK_EVERY
        await both_put_and_both_sign()
        ring.open(ciphers[0])
        assert await ring.keeper.encrypt_anew() == 0, "not before all must have read it"
    for clock in clocks:
        clock.now += SETTLED_S
        await both_put_and_both_sign()
    ring.open(ciphers[1])
    assert await ring.keeper.encrypt_anew() == 7
    assert await ring.keeper.census() == (10, 0, 0)
    file.write_text(new)
    for clock in clocks:
        clock.now += LOOK_EVERY
        await both_put_and_both_sign()
    assert (await ring.keeper.census()).closed == 0


@pytest.mark.parametrize("between", ["{new},{old}\n", "nonsense"])
def test_a_file_that_is_written_again_puts_the_new_key_forward_by_nothing(
    tmp_path: Path, between: str
) -> None:
    file, clock = tmp_path / "keys", Clock()
    old, new = KeyCipher.generate(), KeyCipher.generate()
    file.write_text(old)
    cipher = WatchedCipher(
        Settings.from_environment({"FEDSVC_KEY_ENCRYPTION_KEYS_FILE": str(file)}), clock=clock
    )
    before = cipher.current
    for text in ("{new},{old}", between, "{new},{old} "):
        file.write_text(text.format(new=new, old=old))
        clock.now += LOOK_EVERY
        assert cipher.current == before, text
    clock.now += SETTLED_S - 2 * LOOK_EVERY - 1
    assert cipher.current == before, "three minutes after it was seen first, and not sooner"
    clock.now += 1
    assert cipher.current != before


async def test_a_file_of_encryption_keys_that_is_bad_changes_nothing(ring: KeyRing, tmp_path: Path) -> None:
    file, clock = tmp_path / "keys", Clock()
    file.write_text(KeyCipher.generate())
    settings = Settings.from_environment({"FEDSVC_KEY_ENCRYPTION_KEYS_FILE": str(file)})
    cipher = WatchedCipher(settings, clock=clock)
    sealed, current = cipher.encrypt(b"secret", context=b"a"), cipher.current
    for bad in ("", "AAAA", None):
        file.unlink() if bad is None else file.write_text(bad)
        clock.now += LOOK_EVERY
        with capture_logs() as logged:
            assert cipher.decrypt(sealed, context=b"a") == b"secret"
        assert [entry["event"] for entry in logged] == ["encryption_keys_not_read"]
    file.write_text(KeyCipher.generate())  # in the place of the former: it encrypts at once
    clock.now += LOOK_EVERY
    assert cipher.current != current
    with pytest.raises(KeyUnavailable):
        cipher.decrypt(sealed, context=b"a")


def test_a_file_of_encryption_keys_that_cannot_be_read_for_a_moment_is_read_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, clock = tmp_path / "keys", Clock()
    file.write_text(KeyCipher.generate())
    settings = Settings.from_environment({"FEDSVC_KEY_ENCRYPTION_KEYS_FILE": str(file)})
    cipher = WatchedCipher(settings, clock=clock)
    current = cipher.current

    def fail(_: Path) -> bytes:
        raise OSError(errno.EMFILE, "Too many open files")

    file.write_text(KeyCipher.generate())
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fail)
        clock.now += LOOK_EVERY
        assert cipher.current == current
    clock.now += LOOK_EVERY
    assert cipher.current != current, "although it has not changed since"


async def test_a_keeper_encrypts_anew_as_soon_as_another_key_encrypts(
    ring: KeyRing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(KeyKeeper, "EVERY", 0.01)
    file, clock = tmp_path / "keys", Clock()
    old, new = KeyCipher.generate(), KeyCipher.generate()
    file.write_text(f"{old} {new}")
    settings = Settings.from_environment({"FEDSVC_KEY_ENCRYPTION_KEYS_FILE": str(file)})
    ring.open(WatchedCipher(settings, clock=clock))
    await ring.registry.put(ADA, fresh())
    keeping = asyncio.create_task(ring.keeper.run())
    try:
        file.write_text(f"{new} {old}")  # all know the new one already
        clock.now += LOOK_EVERY
        async with asyncio.timeout(20):
            while not KeyCipher.from_setting(new).knows(await ring.head()):
                await asyncio.sleep(0)
    finally:
        keeping.cancel()


async def test_a_keeper_tells_once_that_redis_is_away(ring: KeyRing, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = [True, False, False, True, False]

    async def end_deletions() -> int:
        if not rounds.pop(0):
            raise QueueUnavailable("Redis is away")
        return 0

    async def sleep(_: float) -> None:
        if not rounds:
            raise asyncio.CancelledError

    monkeypatch.setattr(ring.keeper, "end_deletions", end_deletions)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    with capture_logs() as logs, pytest.raises(asyncio.CancelledError):
        await ring.keeper.run()
    away = [line["problem"] for line in logs if line["event"] == "keys_not_looked_after"]
    assert away == ["Redis is away"] * 2, "each time told once"
