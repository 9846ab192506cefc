"""What forgets outcomes in SQL when their time is over."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from servers.archiving import PARTITIONS, START, System, opened, stop, until
from servers.postgres import PostgresServer
from servers.processes import Fedsvc
from servers.valkey import ValkeyServer
from structlog.testing import capture_logs

from fedsvc.archive.archived_log import ArchivedLog
from fedsvc.archive.audit_log import AuditLog
from fedsvc.domain.audit import AuditEvent
from fedsvc.domain.delivery import Delivery, DeliveryId, DeliveryState, Priority
from fedsvc.domain.events import EventType, HostEvent
from fedsvc.worker.archive_purger import ArchivePurger


def ended(number: int, state: DeliveryState, completed_ms: int) -> Delivery:
    return Delivery(
        DeliveryId(number % PARTITIONS, START + number), state, "https://me.example/1", "Like", "", "", "",
        "", "", Priority.BULK, completed_ms=completed_ms, outcome=START + number,
    )  # fmt: skip


async def fill(system: System, count: int) -> None:
    """One of each state ended at each millisecond from 1 on."""
    states = [state for state in DeliveryState if state.is_terminal]
    await system.archive.record(
        [ended(len(states) * n + k, state, n + 1) for n in range(count) for k, state in enumerate(states)]
    )


async def test_each_category_has_its_own_retention(system: System) -> None:
    await fill(system, 100)
    settings = system.settings
    assert not await system.purger(settings.archive_retention * 1000 + 51).round()
    counts = await system.archive.count_by_activity("https://me.example/1")
    kept = {DeliveryState.DEAD: 100, DeliveryState.PURGED: 100}
    assert counts == {state: kept.get(state, 50) for state in DeliveryState if state.is_terminal}
    assert not await system.purger(settings.archive_dead_retention * 1000 + 51).round()
    counts = await system.archive.count_by_activity("https://me.example/1")
    assert counts == {DeliveryState.DEAD: 50, DeliveryState.PURGED: 50}


async def test_events_and_the_audit_have_their_own_retention(system: System) -> None:
    log, audit = ArchivedLog(system.archive.engine), AuditLog(system.archive.engine)
    await log.record([HostEvent(EventType.HOST_UP, 0, 1000 * ms, f"h{ms}.example") for ms in range(1, 101)])
    await audit.record([AuditEvent(f"{ms:03}", ms, "bob", "host.pause", "", {}) for ms in range(1, 101)])

    async def left() -> tuple[list[str], list[str]]:
        """The first of each."""
        events, _ = await log.read(0, 0, 1_000_000, 1000)
        told = await audit.list(limit=1000)
        return [e.host for e in events if isinstance(e, HostEvent)][:1], [e.id for e in told][-1:]

    settings = system.settings
    assert settings.archive_retention < settings.audit_retention
    assert not await system.purger(settings.archive_retention * 1000 + 51).round()
    assert await left() == (["h51.example"], ["001"])
    assert not await system.purger(settings.audit_retention * 1000 + 51).round()
    assert await left() == ([], ["051"])


async def test_events_are_purged_in_batches_as_well(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ArchivePurger, "BATCH", 30)
    log = ArchivedLog(system.archive.engine)
    await log.record([HostEvent(EventType.HOST_UP, 0, 1000 * ms, "h.example") for ms in range(1, 101)])
    purger = system.purger(system.settings.archive_retention * 1000 + 1000)
    assert [await purger.round() for _ in range(4)] == [True, True, True, False]


async def test_one_worker_purges_in_batches_until_nothing_is_due(system: System) -> None:
    await fill(system, 200)
    now_ms = system.settings.archive_dead_retention * 1000 + 1000
    assert await system.outcomes.lead(0, "a")
    assert not await system.purger(now_ms, "b").round()
    assert await system.rows() == 1200
    assert await system.purger(now_ms, "a").round()
    assert await system.rows() == 700
    running = asyncio.create_task(system.purger(now_ms, "a").run())
    async with asyncio.timeout(20):
        while await system.rows():
            await asyncio.sleep(0.01)
    await stop(running)


async def test_sql_that_is_away_only_delays_the_purge(
    postgres: PostgresServer, valkey: ValkeyServer, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ArchivePurger, "AWAY", 0.05)
    async with opened(postgres.url, valkey, namespace) as system:
        await fill(system, 10)
        await asyncio.to_thread(postgres.stop)
        with capture_logs() as logs:
            purger = system.purger(system.settings.archive_dead_retention * 1000 + 1000)
            running = asyncio.create_task(purger.run())
            try:
                await until(lambda: any(entry["event"] == "purge_away" for entry in logs))
            finally:
                await asyncio.to_thread(postgres.start)
            async with asyncio.timeout(20):
                while await system.rows():
                    await asyncio.sleep(0.01)
            await stop(running)
        assert len([entry for entry in logs if entry["event"] == "purge_away"]) == 1


async def test_a_worker_purges(
    valkey: ValkeyServer, namespace: str, tmp_path: Path, encryption_key: str
) -> None:
    async with opened(f"sqlite:///{tmp_path / 'archive.db'}", valkey, namespace) as system:
        await fill(system, 10)
        environment = system.settings.to_environment() | {
            "FEDSVC_KEY_ENCRYPTION_KEYS": encryption_key,
            "FEDSVC_HTTP_LISTEN": "127.0.0.1:0",
        }
        with Fedsvc(tmp_path, "worker", settings=environment):
            async with asyncio.timeout(60):
                while await system.rows():
                    await asyncio.sleep(0.05)
