"""Registered keys on a real server: what needs them is counted, through everything that can happen to it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from servers.key_ring import ADA, KeyRing, fresh
from servers.queue import HOUR_MS, PARTITIONS, Queue
from servers.spilling import FULL

from fedsvc.archive.engine import create_engine
from fedsvc.archive.spill_store import SpillStore
from fedsvc.archive.tables import metadata
from fedsvc.config import Settings
from fedsvc.domain.delivery import DeliveryState, Reason
from fedsvc.domain.keys import registered_name
from fedsvc.domain.relations import Relation, Rule
from fedsvc.errors import KeyInUse, KeyUnavailable, NotFound
from fedsvc.queue.canceller import Canceller
from fedsvc.queue.key_keeper import KeyKeeper
from fedsvc.queue.key_registry import KeyRegistry
from fedsvc.queue.producer import Terms
from fedsvc.queue.spill import Spill
from fedsvc.worker.affinity import Affinity
from fedsvc.worker.beats import Beats
from fedsvc.worker.memory import MemoryWatch
from fedsvc.worker.spiller import Spiller

BOB = "https://me.example/u/bob#main-key"


async def test_a_key_is_put_replaced_and_told_of_without_its_secret(ring: KeyRing) -> None:
    first, second = fresh(), fresh()
    with pytest.raises(NotFound):
        await ring.registry.get(ADA)
    with pytest.raises(NotFound):
        await ring.registry.rotate(ADA, first)
    assert await ring.registry.usable(ADA) is None
    put = await ring.registry.put(ADA, first)
    assert (put.key_id, put.origin, put.algorithm, put.bits) == (ADA, "me.example", "ed25519", 256)
    assert put.fingerprint == first.fingerprint
    assert put.public_pem == first.public_pem
    again = await ring.registry.rotate(ADA, second)
    assert (again.fingerprint, again.created_ms) == (second.fingerprint, put.created_ms)
    assert (await ring.store.fetch(put.name)).fingerprint == second.fingerprint
    assert (await ring.registry.list(origin="", after="", limit=10)) == [again]


async def test_what_needs_a_key_is_counted_until_it_is_delivered(ring: KeyRing) -> None:
    queue = ring.queue
    await ring.registry.put(ADA, fresh())
    await ring.enqueue("1", *range(8))  # one message in every partition that has one of these hosts
    spread = len({queue.partition_of(n) for n in range(8)})
    assert spread > 1
    assert await ring.uses() == spread
    await ring.enqueue("1", *range(8))
    assert await ring.uses() == spread, "duplicates need nothing"
    admitted = await queue.admit_everywhere()
    assert len(admitted) == 8
    await queue.settle(admitted[0], DeliveryState.RETRY, Reason.TIMEOUT, wait_ms=1)
    assert await ring.uses() == spread
    await queue.pass_time(10)
    await queue.promote()
    for one in [*admitted[1:], *await queue.admit_everywhere()]:
        await queue.deliver(one)
    assert await ring.uses() == 0
    await queue.conserved()


@pytest.mark.parametrize("ends", ["cancelled", "expired", "superseded"])
async def test_what_is_not_sent_any_more_needs_no_key(ring: KeyRing, ends: str) -> None:
    queue = ring.queue
    await ring.registry.put(ADA, fresh())
    deadline = await queue.now_ms() + 1000
    terms = Terms(
        Queue.BULK,
        expire_ms=deadline if ends == "expired" else 0,
        relation=Relation(family="f", rule=Rule.SAME_KEY),
    )
    await queue.producer.enqueue(ring.message("1"), queue.place(0), terms)
    assert await ring.uses() == 1
    if ends == "cancelled":
        await Canceller(queue.link, queue.keys, queue.settings).cancel_activity("https://me.example/1")
    elif ends == "expired":
        await queue.pass_time(2000)
        (late,) = await queue.admit(10)
        await queue.settle(late, DeliveryState.EXPIRED, Reason.EXPIRED)
    else:
        await queue.producer.enqueue(queue.message("2"), queue.place(0), terms)
        assert (await queue.conserved()).counter("superseded") == 1
    assert await ring.uses() == 0
    await queue.conserved()


async def test_a_key_that_is_needed_is_not_deleted_and_goes_once_it_is_not(ring: KeyRing) -> None:
    queue = ring.queue
    await ring.registry.put(ADA, fresh())
    await ring.enqueue("1")
    with pytest.raises(KeyInUse, match="1 activities need key"):
        await ring.registry.delete(ADA, when_unused=False)
    assert await ring.registry.usable(ADA), "a refused deletion changes nothing"
    assert await ring.registry.delete(ADA, when_unused=True)
    assert (await ring.registry.get(ADA)).leaving
    assert await ring.registry.usable(ADA) is None, "nothing new may use it"
    assert await ring.keeper.end_deletions() == 0
    (admitted,) = await queue.admit(1)
    await ring.store.fetch(registered_name(ADA))  # what waits is signed: the Delete of an actor is
    await queue.deliver(admitted)
    assert await ring.keeper.end_deletions() == 1
    assert not await ring.there()
    with pytest.raises(NotFound):
        await ring.registry.get(ADA)
    with pytest.raises(KeyUnavailable):
        await ring.store.fetch(registered_name(ADA))
    assert await ring.registry.list(origin="", after="", limit=10) == []
    with pytest.raises(NotFound):
        await ring.registry.delete(ADA, when_unused=True)


async def test_a_key_is_deleted_once_however_often_the_call_is_repeated(ring: KeyRing) -> None:
    await ring.registry.put(ADA, fresh())
    for _ in range(2):  # the answer to the first may have been lost
        assert not await ring.registry.delete(ADA, when_unused=False, request_id="first")
    with pytest.raises(NotFound):
        await ring.registry.delete(ADA, when_unused=False, request_id="second")
    await ring.registry.put(ADA, fresh())
    assert not await ring.registry.delete(ADA, when_unused=False, request_id="second")


async def test_a_key_that_nothing_needs_is_gone_at_once_and_its_secret_soon(
    ring: KeyRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ring.registry.put(ADA, fresh())
    assert not await ring.registry.delete(ADA, when_unused=False)
    with pytest.raises(NotFound):
        await ring.registry.get(ADA)
    with pytest.raises(NotFound):
        await ring.registry.rotate(ADA, fresh())
    with pytest.raises(NotFound):
        await ring.registry.delete(ADA, when_unused=False)
    monkeypatch.setattr(KeyKeeper, "GRACE_MS", HOUR_MS)
    assert await ring.keeper.end_deletions() == 0
    # Another server may have believed it usable, and have let in what needs it.
    await ring.enqueue("1")
    assert await ring.keeper.end_deletions() == 0
    monkeypatch.setattr(KeyKeeper, "GRACE_MS", 0)
    assert await ring.keeper.end_deletions() == 0
    await ring.store.fetch(registered_name(ADA))
    (admitted,) = await ring.queue.admit(1)
    await ring.queue.deliver(admitted)
    assert await ring.keeper.end_deletions() == 1
    assert not await ring.there()


async def test_what_a_process_does_to_a_key_it_knows_at_once(
    ring: KeyRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(KeyRegistry, "FRESH", 3600.0)
    first = await ring.registry.put(ADA, fresh())
    assert await ring.registry.usable(ADA) == first
    second = await ring.registry.rotate(ADA, fresh())
    assert await ring.registry.usable(ADA) == second
    await ring.enqueue("1")
    assert await ring.registry.delete(ADA, when_unused=True)
    assert await ring.registry.usable(ADA) is None
    third = await ring.registry.put(ADA, fresh())
    assert await ring.registry.usable(ADA) == third


@pytest.mark.parametrize("gone", [False, True])
async def test_a_key_that_is_put_again_stays(ring: KeyRing, gone: bool) -> None:
    await ring.registry.put(ADA, fresh())
    if not gone:
        await ring.enqueue("1")
    await ring.registry.delete(ADA, when_unused=True)
    second = await ring.registry.put(ADA, fresh())
    assert not second.leaving
    for admitted in await ring.queue.admit(1):
        await ring.queue.deliver(admitted)
    assert await ring.keeper.end_deletions() == 0
    assert await ring.registry.usable(ADA) == second
    assert await ring.registry.list(origin="me.example", after="", limit=10) == [second]
    assert await ring.queue.link.call("SCARD", ring.queue.keys.leaving_keys) == 0


async def test_what_has_gone_to_sql_needs_its_key_too(
    ring: KeyRing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = ring.queue
    engine = create_engine(Settings.from_environment({"DATABASE_URL": f"sqlite:///{tmp_path}/s.db"}))
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    memory = MemoryWatch(queue.settings)
    memory.note(FULL)
    spiller = Spiller(
        Spill(queue.link, queue.keys, queue.settings),
        SpillStore(engine),
        memory,
        Beats("spill"),
        Affinity("a", queue.settings.partitions),
    )
    await ring.registry.put(ADA, fresh())
    for number in range(5):  # host 0 is down
        await queue.enqueue(f"bad{number}", path=f"/{number}")
        (admitted,) = await queue.admit(100)
        await queue.fail(admitted, wait_ms=1000 * HOUR_MS)
    await queue.pass_time(HOUR_MS)
    for number in range(300):
        await ring.enqueue(f"n{number}")
    while (await queue.conserved()).parked < 299:
        for admitted in await queue.admit(100):
            await queue.fail(admitted)
    while await spiller.round():
        pass
    assert (await queue.conserved()).counter("spilled") >= 250
    assert await ring.uses() == 300
    with pytest.raises(KeyInUse):
        await ring.registry.delete(ADA, when_unused=False)
    await ring.registry.delete(ADA, when_unused=True)
    assert await ring.keeper.end_deletions() == 0
    await queue.hosts.seen("h0.example")
    delivered = 0
    for _ in range(2000):
        for admitted in await queue.admit(100):
            delivered += 1
            await ring.store.fetch(registered_name(ADA))
            await queue.deliver(admitted)
        await spiller.round()
        await queue.pass_time(1000)
        if delivered >= 300 and await ring.keeper.end_deletions():
            break
    assert (await ring.uses(), await ring.there(), delivered) == (0, False, 300)
    await engine.dispose()


@pytest.mark.parametrize("how", ["put", "rotate"])
async def test_a_key_that_is_deleted_while_it_is_stored_was_stored(
    ring: KeyRing, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ring.registry.put(ADA, fresh())
    link, key = ring.queue.link, fresh()
    call = link.call

    async def deleted_meanwhile() -> None:
        monkeypatch.setattr(link, "call", call)
        await ring.registry.delete(ADA, when_unused=False)

    def between(*command: Any) -> Any:
        return asyncio.ensure_future(deleted_meanwhile()) if command[0] == "ZADD" else call(*command)

    monkeypatch.setattr(link, "call", between)
    stored = await getattr(ring.registry, how)(ADA, key)
    assert (stored.fingerprint, stored.leaving) == (key.fingerprint, False)
    with pytest.raises(NotFound):
        await ring.registry.get(ADA)


async def test_a_key_that_is_leaving_is_told_so_when_it_is_replaced(ring: KeyRing) -> None:
    await ring.registry.put(ADA, fresh())
    await ring.enqueue("1")
    assert await ring.registry.delete(ADA, when_unused=True)
    assert (await ring.registry.rotate(ADA, fresh())).leaving
    assert not (await ring.registry.put(ADA, fresh())).leaving


async def test_a_call_that_is_finished_keeps_a_key_that_somebody_has_just_found_not_needed(
    ring: KeyRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = ring.queue.link
    await ring.registry.put(ADA, fresh())
    await ring.enqueue("1")
    await ring.registry.delete(ADA, when_unused=True)
    (admitted,) = await ring.queue.admit(1)
    await ring.queue.deliver(admitted)
    begun = await link.now_ms()
    while await link.now_ms() == begun:
        pass
    uses = ring.registry.uses

    async def finished_meanwhile(name: str) -> int:
        found = await uses(name)
        assert await ring.registry.finishes(ADA, [True, False])
        return found

    monkeypatch.setattr(ring.registry, "uses", finished_meanwhile)
    assert await ring.keeper.end_deletions() == 0
    assert await ring.there()
    monkeypatch.setattr(ring.registry, "uses", uses)
    assert await ring.keeper.end_deletions() == 1


async def test_what_can_be_repeated_without_a_usable_key(ring: KeyRing) -> None:
    finishes = ring.registry.finishes
    for there in (True, False):
        if there:
            await ring.registry.put(ADA, fresh())
            await ring.enqueue("1")
            await ring.registry.delete(ADA, when_unused=True)
        else:
            (admitted,) = await ring.queue.admit(1)
            await ring.queue.deliver(admitted)
            await ring.registry.delete(ADA, when_unused=True)
        assert await finishes(ADA, [True, True])
        assert await finishes(ADA, [True, False]) is there
        assert not await finishes(ADA, [False, False])
        assert not await finishes(ADA, [])


async def test_keys_are_listed_by_origin_in_pages(ring: KeyRing) -> None:
    origins = ("a.example", "a.example.evil", "b.example", "a-b.example", "aa.example")
    made = [f"https://{origin}/u/{n}#k" for origin in origins for n in range(5)]
    for key_id in made:
        await ring.registry.put(key_id, fresh())
    own = await ring.registry.list(origin="a.example", after="", limit=100)
    assert [key.key_id for key in own] == made[:5]
    seen: list[str] = []
    after = ""
    while page := await ring.registry.list(origin="", after=after, limit=3):
        seen += [key.key_id for key in page]
        after = f"{page[-1].origin} {page[-1].key_id}"
    assert sorted(seen) == sorted(made)
    await ring.registry.delete(made[1], when_unused=True)
    own = await ring.registry.list(origin="a.example", after="", limit=4)
    assert [key.key_id for key in own] == [made[0], *made[2:5]], "a page is full though one has gone"


async def test_counts_are_spread_over_the_partitions_and_add_up(ring: KeyRing) -> None:
    await ring.registry.put(ADA, fresh())
    for number in range(20):
        await ring.enqueue(str(number), number)
    counts = [
        int(
            await ring.queue.link.call("HGET", ring.queue.keys.partition(n).key_uses, registered_name(ADA))
            or 0
        )
        for n in range(PARTITIONS)
    ]
    assert sum(counts) == 20
    assert await ring.uses(BOB) == 0
