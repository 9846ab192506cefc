"""Registered keys on a real server: what needs them is counted, through everything that can happen to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from servers.queue import HOUR_MS, PARTITIONS, Queue, open_queue
from servers.valkey import ValkeyServer
from structlog.testing import capture_logs

from fedsvc.archive.engine import create_engine
from fedsvc.archive.spill_store import SpillStore
from fedsvc.archive.tables import metadata
from fedsvc.config import Settings
from fedsvc.domain.delivery import DeliveryState, Reason
from fedsvc.domain.keys import KeyCipher, PrivateKey, load_private_key, registered_name
from fedsvc.domain.message import Message
from fedsvc.domain.relations import Relation, Rule
from fedsvc.errors import KeyInUse, KeyUnavailable, NotFound
from fedsvc.queue.canceller import Canceller
from fedsvc.queue.key_keeper import KeyKeeper
from fedsvc.queue.key_registry import KeyRegistry
from fedsvc.queue.keystore import KeyStore
from fedsvc.queue.producer import Terms
from fedsvc.queue.server_info import ServerInfo
from fedsvc.queue.spill import Spill
from fedsvc.queue.watched_cipher import SETTLED_S, WatchedCipher
from fedsvc.watched_files import LOOK_EVERY
from fedsvc.worker.beats import Beats
from fedsvc.worker.memory import MemoryWatch
from fedsvc.worker.spiller import Spiller

ADA = "https://me.example/u/ada#main-key"
BOB = "https://me.example/u/bob#main-key"
FULL = ServerInfo("valkey", "8", 80, 80, 80, 1.0, 100, "noeviction", True, True, True)


def fresh() -> PrivateKey:
    key = ed25519.Ed25519PrivateKey.generate()
    return load_private_key(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


class Desk:
    def __init__(self, queue: Queue, cipher: KeyCipher) -> None:
        self.queue = queue
        self.open(cipher)

    def open(self, cipher: KeyCipher) -> None:
        """As a process does that starts with these key encryption keys."""
        queue = self.queue
        self.registry = KeyRegistry(queue.link, queue.keys, cipher, queue.settings)
        self.keeper = KeyKeeper(queue.link, queue.keys, cipher, self.registry)
        self.store = KeyStore(queue.link, queue.keys, cipher, lifetime_s=HOUR_MS)

    def message(self, activity: str, key_id: str = ADA) -> Message:
        return replace(self.queue.message(activity), key_id=key_id, key_name=registered_name(key_id))

    async def enqueue(self, activity: str, *inboxes: int) -> None:
        places = [self.queue.place(n) for n in inboxes or (0,)]
        await self.queue.producer.fan_out(self.message(activity), places, Terms(Queue.BULK))

    async def uses(self, key_id: str = ADA) -> int:
        return await self.registry.uses(registered_name(key_id))

    async def head(self, key_id: str = ADA) -> bytes:
        """Of the stored key: tells under which key encryption key it is."""
        slot = self.queue.keys.private_key(registered_name(key_id))
        return bytes(await self.queue.link.call("HGET", slot, "head"))

    async def there(self, key_id: str = ADA) -> bool:
        """Whether anything of the key is left in Redis."""
        return bool(
            await self.queue.link.call("EXISTS", self.queue.keys.private_key(registered_name(key_id)))
        )


@pytest.fixture
async def desk(valkey: ValkeyServer, namespace: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Desk]:
    monkeypatch.setattr(KeyKeeper, "GRACE_MS", 0)
    monkeypatch.setattr(KeyRegistry, "FRESH", 0.0)
    async with open_queue(valkey.url, namespace) as queue:
        yield Desk(queue, KeyCipher.from_setting(KeyCipher.generate()))


async def test_a_key_is_put_replaced_and_told_of_without_its_secret(desk: Desk) -> None:
    first, second = fresh(), fresh()
    with pytest.raises(NotFound):
        await desk.registry.get(ADA)
    with pytest.raises(NotFound):
        await desk.registry.rotate(ADA, first)
    assert await desk.registry.usable(ADA) is None
    put = await desk.registry.put(ADA, first)
    assert (put.key_id, put.origin, put.algorithm, put.bits) == (ADA, "me.example", "ed25519", 256)
    assert put.fingerprint == first.fingerprint
    assert put.public_pem == first.public_pem
    again = await desk.registry.rotate(ADA, second)
    assert (again.fingerprint, again.created_ms) == (second.fingerprint, put.created_ms)
    assert (await desk.store.fetch(put.name)).fingerprint == second.fingerprint
    assert (await desk.registry.list(origin="", after="", limit=10)) == [again]


async def test_what_needs_a_key_is_counted_until_it_is_delivered(desk: Desk) -> None:
    queue = desk.queue
    await desk.registry.put(ADA, fresh())
    await desk.enqueue("1", *range(8))  # one message in every partition that has one of these hosts
    spread = len({queue.partition_of(n) for n in range(8)})
    assert spread > 1
    assert await desk.uses() == spread
    await desk.enqueue("1", *range(8))
    assert await desk.uses() == spread, "duplicates need nothing"
    admitted = await queue.admit_everywhere()
    assert len(admitted) == 8
    await queue.settle(admitted[0], DeliveryState.RETRY, Reason.TIMEOUT, wait_ms=1)
    assert await desk.uses() == spread
    await queue.pass_time(10)
    await queue.promote()
    for one in [*admitted[1:], *await queue.admit_everywhere()]:
        await queue.deliver(one)
    assert await desk.uses() == 0
    await queue.conserved()


@pytest.mark.parametrize("ends", ["cancelled", "expired", "superseded"])
async def test_what_is_not_sent_any_more_needs_no_key(desk: Desk, ends: str) -> None:
    queue = desk.queue
    await desk.registry.put(ADA, fresh())
    deadline = await queue.now_ms() + 1000
    terms = Terms(
        Queue.BULK,
        expire_ms=deadline if ends == "expired" else 0,
        relation=Relation(family="f", rule=Rule.SAME_KEY),
    )
    await queue.producer.enqueue(desk.message("1"), queue.place(0), terms)
    assert await desk.uses() == 1
    if ends == "cancelled":
        await Canceller(queue.link, queue.keys, queue.settings).cancel_activity("https://me.example/1")
    elif ends == "expired":
        await queue.pass_time(2000)
        (late,) = await queue.admit(10)
        await queue.settle(late, DeliveryState.EXPIRED, Reason.EXPIRED)
    else:
        await queue.producer.enqueue(queue.message("2"), queue.place(0), terms)
        assert (await queue.conserved()).counter("superseded") == 1
    assert await desk.uses() == 0
    await queue.conserved()


async def test_a_key_that_is_needed_is_not_deleted_and_goes_once_it_is_not(desk: Desk) -> None:
    queue = desk.queue
    await desk.registry.put(ADA, fresh())
    await desk.enqueue("1")
    with pytest.raises(KeyInUse, match="1 activities need key"):
        await desk.registry.delete(ADA, when_unused=False)
    assert await desk.registry.usable(ADA), "a refused deletion changes nothing"
    assert await desk.registry.delete(ADA, when_unused=True)
    assert (await desk.registry.get(ADA)).leaving
    assert await desk.registry.usable(ADA) is None, "nothing new may use it"
    assert await desk.keeper.end_deletions() == 0
    (admitted,) = await queue.admit(1)
    await desk.store.fetch(registered_name(ADA))  # what waits is signed: the Delete of an actor is
    await queue.deliver(admitted)
    assert await desk.keeper.end_deletions() == 1
    assert not await desk.there()
    with pytest.raises(NotFound):
        await desk.registry.get(ADA)
    with pytest.raises(KeyUnavailable):
        await desk.store.fetch(registered_name(ADA))
    assert await desk.registry.list(origin="", after="", limit=10) == []
    with pytest.raises(NotFound):
        await desk.registry.delete(ADA, when_unused=True)


async def test_a_key_that_nothing_needs_is_gone_at_once_and_its_secret_soon(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    await desk.registry.put(ADA, fresh())
    assert not await desk.registry.delete(ADA, when_unused=False)
    with pytest.raises(NotFound):
        await desk.registry.get(ADA)
    with pytest.raises(NotFound):
        await desk.registry.rotate(ADA, fresh())
    monkeypatch.setattr(KeyKeeper, "GRACE_MS", HOUR_MS)
    # Another server may have believed it usable, and have let in what needs it.
    await desk.enqueue("1")
    assert await desk.keeper.end_deletions() == 0
    monkeypatch.setattr(KeyKeeper, "GRACE_MS", 0)
    assert await desk.keeper.end_deletions() == 0
    await desk.store.fetch(registered_name(ADA))
    (admitted,) = await desk.queue.admit(1)
    await desk.queue.deliver(admitted)
    assert await desk.keeper.end_deletions() == 1
    assert not await desk.there()


@pytest.mark.parametrize("gone", [False, True])
async def test_a_key_that_is_put_again_stays(desk: Desk, gone: bool) -> None:
    await desk.registry.put(ADA, fresh())
    if not gone:
        await desk.enqueue("1")
    await desk.registry.delete(ADA, when_unused=True)
    second = await desk.registry.put(ADA, fresh())
    assert not second.leaving
    for admitted in await desk.queue.admit(1):
        await desk.queue.deliver(admitted)
    assert await desk.keeper.end_deletions() == 0
    assert await desk.registry.usable(ADA) == second
    assert await desk.registry.list(origin="me.example", after="", limit=10) == [second]
    assert await desk.queue.link.call("SCARD", desk.queue.keys.leaving_keys) == 0


async def test_what_has_gone_to_sql_needs_its_key_too(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = desk.queue
    engine = create_engine(Settings.from_environment({"DATABASE_URL": f"sqlite:///{tmp_path}/s.db"}))
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    memory = MemoryWatch(queue.settings)
    memory.note(FULL)
    spiller = Spiller(
        queue.settings,
        Spill(queue.link, queue.keys, queue.settings),
        SpillStore(engine),
        memory,
        Beats("spill"),
    )
    await desk.registry.put(ADA, fresh())
    for number in range(5):  # host 0 is down
        await queue.enqueue(f"bad{number}", path=f"/{number}")
        (admitted,) = await queue.admit(100)
        await queue.fail(admitted, wait_ms=1000 * HOUR_MS)
    await queue.pass_time(HOUR_MS)
    for number in range(300):
        await desk.enqueue(f"n{number}")
    while (await queue.conserved()).parked < 299:
        for admitted in await queue.admit(100):
            await queue.fail(admitted)
    while await spiller.round():
        pass
    assert (await queue.conserved()).counter("spilled") >= 250
    assert await desk.uses() == 300
    with pytest.raises(KeyInUse):
        await desk.registry.delete(ADA, when_unused=False)
    await desk.registry.delete(ADA, when_unused=True)
    assert await desk.keeper.end_deletions() == 0
    await queue.hosts.seen("h0.example")
    delivered = 0
    for _ in range(2000):
        for admitted in await queue.admit(100):
            delivered += 1
            await desk.store.fetch(registered_name(ADA))
            await queue.deliver(admitted)
        await spiller.round()
        await queue.pass_time(1000)
        if delivered >= 300 and await desk.keeper.end_deletions():
            break
    assert (await desk.uses(), await desk.there(), delivered) == (0, False, 300)
    await engine.dispose()


async def test_all_keys_are_encrypted_anew_when_the_first_encryption_key_is_another(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = KeyCipher.generate(), KeyCipher.generate()
    desk.open(KeyCipher.from_setting(old))
    keys = {f"https://me.example/u/{n}#k": fresh() for n in range(250)}
    for key_id, key in keys.items():
        await desk.registry.put(key_id, key)
    called = fresh()
    await desk.store.ensure(called)
    assert await desk.keeper.encrypt_anew() == 0
    desk.open(KeyCipher.from_setting(f"{new},{old}"))
    assert (await desk.store.fetch(called.fingerprint)).fingerprint == called.fingerprint
    assert await desk.keeper.census() == (0, 251, 0)
    assert await desk.keeper.encrypt_anew() == 251
    assert await desk.keeper.census() == (251, 0, 0)
    assert await desk.keeper.encrypt_anew() == 0
    desk.open(KeyCipher.from_setting(new))  # the old one may go
    for key_id, key in keys.items():
        assert (await desk.store.fetch(registered_name(key_id))).fingerprint == key.fingerprint
    assert (await desk.store.fetch(called.fingerprint)).fingerprint == called.fingerprint
    desk.open(KeyCipher.from_setting(KeyCipher.generate()))
    assert await desk.keeper.encrypt_anew() == 0, "what cannot be opened is left alone"
    assert await desk.keeper.census() == (0, 0, 251)
    desk.open(KeyCipher.from_setting(new))
    await desk.store.fetch(called.fingerprint)


async def test_a_key_that_is_replaced_while_it_is_encrypted_anew_stays_the_new_one(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = KeyCipher.generate(), KeyCipher.generate()
    desk.open(KeyCipher.from_setting(old))
    await desk.registry.put(ADA, fresh())
    late = desk.registry
    desk.open(KeyCipher.from_setting(f"{new},{old}"))
    replacement = fresh()
    decrypt = KeyCipher.decrypt
    opened: list[bytes] = []

    def note(self: KeyCipher, sealed: bytes, *, context: bytes) -> bytes:
        opened.append(sealed)
        return decrypt(self, sealed, context=context)

    monkeypatch.setattr(KeyCipher, "decrypt", note)
    call = desk.queue.link.run

    async def run(script: object, *arguments: object, **named: object) -> object:
        if opened:
            opened.clear()
            await late.put(ADA, replacement)
        return await call(script, *arguments, **named)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(desk.queue.link, "run", run)
        assert await desk.keeper.encrypt_anew() == 0
    assert (await desk.store.fetch(registered_name(ADA))).fingerprint == replacement.fingerprint
    assert await desk.keeper.encrypt_anew() == 1


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_the_encryption_key_is_changed_while_all_processes_run(desk: Desk, tmp_path: Path) -> None:
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
            desk.open(cipher)
            registered.append(f"https://me.example/u/{len(registered)}#k")
            await desk.registry.put(registered[-1], fresh())
        for cipher in ciphers:
            desk.open(cipher)
            for key_id in registered:
                await desk.store.fetch(registered_name(key_id))

    await both_put_and_both_sign()
    file.write_text(f"{new},{old}")
    for clock in (clocks[0], clocks[1]):
        clock.now += LOOK_EVERY
        await both_put_and_both_sign()
        desk.open(ciphers[0])
        assert await desk.keeper.encrypt_anew() == 0, "not before all must have read it"
    for clock in clocks:
        clock.now += SETTLED_S
        await both_put_and_both_sign()
    desk.open(ciphers[1])
    assert await desk.keeper.encrypt_anew() == 7
    assert await desk.keeper.census() == (10, 0, 0)
    file.write_text(new)
    for clock in clocks:
        clock.now += LOOK_EVERY
        await both_put_and_both_sign()
    assert (await desk.keeper.census()).closed == 0


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


async def test_a_file_of_encryption_keys_that_is_bad_changes_nothing(desk: Desk, tmp_path: Path) -> None:
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


async def test_a_keeper_encrypts_anew_as_soon_as_another_key_encrypts(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(KeyKeeper, "EVERY", 0.01)
    file, clock = tmp_path / "keys", Clock()
    old, new = KeyCipher.generate(), KeyCipher.generate()
    file.write_text(f"{old} {new}")
    settings = Settings.from_environment({"FEDSVC_KEY_ENCRYPTION_KEYS_FILE": str(file)})
    desk.open(WatchedCipher(settings, clock=clock))
    await desk.registry.put(ADA, fresh())
    keeping = asyncio.create_task(desk.keeper.run())
    try:
        file.write_text(f"{new} {old}")  # all know the new one already
        clock.now += LOOK_EVERY
        async with asyncio.timeout(20):
            while not KeyCipher.from_setting(new).knows(await desk.head()):
                await asyncio.sleep(0)
    finally:
        keeping.cancel()


async def test_keys_are_listed_by_origin_in_pages(desk: Desk) -> None:
    origins = ("a.example", "a.example.evil", "b.example", "a-b.example", "aa.example")
    made = [f"https://{origin}/u/{n}#k" for origin in origins for n in range(5)]
    for key_id in made:
        await desk.registry.put(key_id, fresh())
    own = await desk.registry.list(origin="a.example", after="", limit=100)
    assert [key.key_id for key in own] == made[:5]
    seen: list[str] = []
    after = ""
    while page := await desk.registry.list(origin="", after=after, limit=3):
        seen += [key.key_id for key in page]
        after = f"{page[-1].origin} {page[-1].key_id}"
    assert sorted(seen) == sorted(made)
    await desk.registry.delete(made[1], when_unused=True)
    own = await desk.registry.list(origin="a.example", after="", limit=4)
    assert [key.key_id for key in own] == [made[0], *made[2:5]], "a page is full though one has gone"


async def test_counts_are_spread_over_the_partitions_and_add_up(desk: Desk) -> None:
    await desk.registry.put(ADA, fresh())
    for number in range(20):
        await desk.enqueue(str(number), number)
    counts = [
        int(
            await desk.queue.link.call("HGET", desk.queue.keys.partition(n).key_uses, registered_name(ADA))
            or 0
        )
        for n in range(PARTITIONS)
    ]
    assert sum(counts) == 20
    assert await desk.uses(BOB) == 0
