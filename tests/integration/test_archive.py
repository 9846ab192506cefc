"""The archive, the same on SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from servers.migrated import prepare
from servers.postgres import PostgresServer
from servers.processes import Fedsvc
from sqlalchemy import text

from fedsvc.archive import migrate, revision
from fedsvc.archive.archive import Archive
from fedsvc.archive.engine import create_engine
from fedsvc.archive.tables import deliveries, metadata
from fedsvc.archive.transaction import DataRefused
from fedsvc.config import Settings
from fedsvc.domain.delivery import Attempt, Delivery, DeliveryId, DeliveryState, Priority, Reason
from fedsvc.errors import ArchiveUnavailable

#: the advisory lock of migrations on PostgreSQL
LOCK = 7_203_116_502_184_471
ACTIVITY = "https://me.example/activities/1"


@pytest.fixture
def settings(database_url: str) -> Settings:
    return Settings.from_environment({"DATABASE_URL": database_url})


@asynccontextmanager
async def emptied(settings: Settings) -> AsyncIterator[Archive]:
    await asyncio.to_thread(prepare, settings)
    archive = Archive(create_engine(settings))
    async with archive.engine.begin() as connection:
        await connection.execute(text("DELETE FROM deliveries"))
    yield archive
    await archive.close()


@pytest.fixture
async def archive(settings: Settings) -> AsyncIterator[Archive]:
    async with emptied(settings) as archive:
        yield archive


def outcome(number: int, state: DeliveryState = DeliveryState.DELIVERED, **changes: object) -> Delivery:
    sequence = 1_763_900_000_000_000 + number
    delivery = Delivery(
        DeliveryId(number % 3, sequence), state, ACTIVITY, "Create", "https://me.example/u/a",
        f"https://h{number}.example/inbox", f"h{number}.example", "me.example", "https://me.example/u/a#k",
        Priority.NORMAL, 1, Reason.OK, 202, "", expire_ms=5, completed_ms=sequence // 1000 + 7,
        outcome=sequence + 7000, ordering_key="o", request_id="r",
        history=(Attempt(sequence // 1000, 7, 202, Reason.OK),),
    )  # fmt: skip
    return replace(delivery, **changes)  # type: ignore[arg-type]


async def test_an_outcome_is_read_as_it_was_written(archive: Archive) -> None:
    written = outcome(1, snippet="ümlaut ☂")
    assert await archive.record([written]) == 1
    assert await archive.get(written.id) == written
    assert await archive.get(DeliveryId(0, 1)) is None


async def test_a_batch_that_is_written_again_changes_nothing(archive: Archive) -> None:
    batch = [outcome(n) for n in range(1000)]
    for _ in range(2):
        assert await archive.record(batch) == 1000
    assert await archive.count_by_activity(ACTIVITY) == {DeliveryState.DELIVERED: 1000}


async def test_many_outcomes_are_written_together(archive: Archive) -> None:
    """More than one statement holds, and a rest."""
    numbers = range(1, 2 * 128 + 2 * 16 + 5)
    await archive.record([outcome(number) for number in numbers[::2]])
    assert await archive.record([outcome(number) for number in numbers]) == len(numbers)
    for number in numbers:
        assert await archive.get(outcome(number).id) == outcome(number)


async def test_only_a_newer_outcome_replaces_another(archive: Archive) -> None:
    dead = outcome(1, DeliveryState.DEAD)
    replayed = replace(dead, state=DeliveryState.DELIVERED, outcome=dead.outcome + 5)
    await archive.record([replayed])
    await archive.record([dead])
    assert await archive.get(dead.id) == replayed
    await archive.record([dead, replayed, dead])
    assert await archive.get(dead.id) == replayed


async def test_text_that_a_database_cannot_hold_is_mended(archive: Archive) -> None:
    odd = outcome(1, snippet="a\0b\ud800c", request_id="x" * 9000)
    await archive.record([odd])
    read = await archive.get(odd.id)
    assert read is not None
    assert read.snippet == "a\N{REPLACEMENT CHARACTER}b?c"
    assert len(read.request_id) == 4096


async def test_recipients_are_listed_page_by_page_and_by_state(archive: Archive) -> None:
    everything = [
        outcome(n, DeliveryState.DEAD if n % 5 == 0 else DeliveryState.DELIVERED) for n in range(25)
    ]
    await archive.record([*everything, outcome(99, activity_id="https://me.example/another")])
    found: list[Delivery] = []
    while True:
        page = await archive.list_by_activity(ACTIVITY, after=found[-1].id if found else None, limit=4)
        if not page:
            break
        found += page
    assert found == sorted(everything, key=lambda d: d.id)
    dead = await archive.list_by_activity(ACTIVITY, limit=100, states=[DeliveryState.DEAD])
    assert len(dead) == 5
    assert await archive.count_by_activity(ACTIVITY) == {DeliveryState.DELIVERED: 20, DeliveryState.DEAD: 5}
    assert await archive.count_by_activity("https://me.example/none") == {}


ALL = [state for state in DeliveryState if state.is_terminal]


async def test_what_is_old_is_purged_some_at_a_time_oldest_first(archive: Archive) -> None:
    await archive.record([outcome(n, completed_ms=n) for n in range(20)])
    assert await archive.purge({DeliveryState.DELIVERED: 15}, limit=10) == 10
    assert await archive.get(outcome(9).id) is None
    assert await archive.get(outcome(10).id) is not None
    assert await archive.purge({DeliveryState.DELIVERED: 15}, limit=10) == 5
    assert await archive.purge({DeliveryState.DELIVERED: 15}, limit=10) == 0
    assert await archive.count_by_activity(ACTIVITY) == {DeliveryState.DELIVERED: 5}


async def test_each_state_is_purged_by_its_own_time(archive: Archive) -> None:
    await archive.record([outcome(n, ALL[n % len(ALL)], completed_ms=n) for n in range(20 * len(ALL))])
    times = {state: 10 * len(ALL) for state in ALL} | {DeliveryState.DEAD: 0}
    del times[DeliveryState.PURGED]
    assert await archive.purge(times, limit=25) == 25
    assert await archive.purge(times, limit=25) == 10 * (len(ALL) - 2) - 25
    assert await archive.purge(times, limit=25) == 0
    kept = dict.fromkeys(ALL, 10) | {DeliveryState.DEAD: 20, DeliveryState.PURGED: 20}
    assert await archive.count_by_activity(ACTIVITY) == kept


async def test_any_number_is_purged_at_once(archive: Archive) -> None:
    """More than either database takes parameters."""
    some = 40_000
    await archive.record([outcome(n, completed_ms=n) for n in range(some)])
    assert await archive.purge({DeliveryState.DELIVERED: some}, limit=some) == some
    assert await archive.count_by_activity(ACTIVITY) == {}


async def test_a_dead_letter_that_is_replayed_while_it_is_purged_keeps_its_row(
    postgres: PostgresServer,
) -> None:
    dead = outcome(1, DeliveryState.DEAD, completed_ms=5)
    waiting = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
    async with (
        emptied(Settings.from_environment({"DATABASE_URL": postgres.url})) as archive,
        archive.engine.connect() as replaying,
        archive.engine.connect() as looking,
    ):
        await archive.record([dead, outcome(2, DeliveryState.DEAD, completed_ms=6)])
        change = deliveries.update().where(deliveries.c.sequence == dead.id.sequence)
        await replaying.execute(change.values(state=int(DeliveryState.DELIVERED), completed_ms=7))
        purging = asyncio.create_task(archive.purge({DeliveryState.DEAD: 100}, limit=10))
        async with asyncio.timeout(20):
            while not (await looking.execute(waiting)).scalar():
                await looking.rollback()
        assert not purging.done()
        await replaying.commit()
        assert await asyncio.wait_for(purging, 20) == 1
        kept = await archive.get(dead.id)
        assert kept is not None
        assert kept.state is DeliveryState.DELIVERED


@pytest.mark.parametrize(
    "change",
    [
        {"outcome": 2**70},
        {"status": 2**63},
        {"expire_ms": -(2**65)},
        {"history": (Attempt(1, 2, b"?", Reason.OK),)},  # type: ignore[arg-type]
    ],
    ids=["outcome", "status", "time", "history"],
)
async def test_what_no_column_holds_is_told_from_an_outage(archive: Archive, change: dict[str, Any]) -> None:
    with pytest.raises(DataRefused):
        await archive.record([outcome(1), outcome(2, **change), outcome(3)])
    assert await archive.count_by_activity(ACTIVITY) == {}
    await archive.takes_rows()
    assert await archive.record([outcome(1)]) == 1


async def test_what_a_constraint_forbids_is_told_from_an_outage(archive: Archive) -> None:
    async with forbidden_host(archive, "h2.example"):
        with pytest.raises(DataRefused):
            await archive.record([outcome(1), outcome(2), outcome(3)])
        await archive.takes_rows()


async def test_a_table_that_takes_no_row_at_all_is_an_outage(archive: Archive) -> None:
    """As when a column was added that this version knows nothing of."""
    async with forbidden_host(archive, ""):
        with pytest.raises(ArchiveUnavailable, match="deliveries") as refused:
            await archive.takes_rows()
        assert not isinstance(refused.value, DataRefused)


@asynccontextmanager
async def forbidden_host(archive: Archive, host: str) -> AsyncIterator[None]:
    """The table refuses rows of this host."""
    if archive.engine.dialect.name == "sqlite":
        begin = (
            f"CREATE TRIGGER forbidden BEFORE INSERT ON deliveries WHEN NEW.host = '{host}' "
            "BEGIN SELECT RAISE(ABORT, 'forbidden'); END"
        )
        end = "DROP TRIGGER forbidden"
    else:
        begin = f"ALTER TABLE deliveries ADD CONSTRAINT forbidden CHECK (host <> '{host}')"
        end = "ALTER TABLE deliveries DROP CONSTRAINT forbidden"
    async with archive.engine.begin() as connection:
        await connection.execute(text(begin))
    try:
        yield
    finally:
        async with archive.engine.begin() as connection:
            await connection.execute(text(end))


async def test_an_archive_that_answers_is_pinged(archive: Archive) -> None:
    await archive.ping()
    await revision.check(archive.engine)


async def test_migrations_make_the_tables_that_the_code_knows(archive: Archive) -> None:
    async with archive.engine.connect() as connection:
        differences = await connection.run_sync(
            lambda c: compare_metadata(MigrationContext.configure(c), metadata)
        )
    assert differences == []


def test_migrations_go_up_and_down_and_twice(settings: Settings) -> None:
    assert migrate.upgrade(settings) == migrate.upgrade(settings) == revision.head_revision()
    assert migrate.downgrade(settings, "base") == ""
    assert migrate.upgrade(settings) == revision.head_revision()


async def test_a_schema_of_the_next_version_is_used_and_left_as_it_is(settings: Settings) -> None:
    await asyncio.to_thread(migrate.upgrade, settings)
    engine = create_engine(settings)
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    try:
        await revision.check(engine)
        assert await asyncio.to_thread(migrate.upgrade, settings) == "9999"
    finally:
        async with engine.begin() as connection:
            await connection.execute(
                text("UPDATE alembic_version SET version_num = :head"), {"head": revision.head_revision()}
            )
        await engine.dispose()


def test_several_that_migrate_at_once_wait_for_each_other(settings: Settings, tmp_path: Path) -> None:
    migrate.downgrade(migrated(settings), "base")
    environment = {"DATABASE_URL": settings.database_url}
    migrating = []
    for number in range(3):
        (tmp_path / str(number)).mkdir()
        migrating.append(Fedsvc(tmp_path / str(number), "migrate", settings=environment).start())
    assert [fedsvc.process.wait(60) for fedsvc in migrating] == [0, 0, 0]


def migrated(settings: Settings) -> Settings:
    migrate.upgrade(settings)
    return settings


async def test_a_database_that_is_not_migrated_is_told(settings: Settings) -> None:
    await asyncio.to_thread(lambda: migrate.downgrade(migrated(settings), "base"))
    engine = create_engine(settings)
    with pytest.raises(ArchiveUnavailable, match="fedsvc migrate"):
        await revision.check(engine)
    with pytest.raises(ArchiveUnavailable):
        await Archive(engine).get(DeliveryId(1, 1))
    await engine.dispose()


async def test_a_database_that_goes_away_is_found_again(postgres: PostgresServer) -> None:
    settings = Settings.from_environment({"DATABASE_URL": postgres.url})
    await asyncio.to_thread(migrate.upgrade, settings)
    archive = Archive(create_engine(settings))
    await archive.record([outcome(1)])
    await asyncio.to_thread(postgres.stop)
    try:
        with pytest.raises(ArchiveUnavailable) as refused:
            await archive.record([outcome(2)])
        assert "geheim" not in str(refused.value)
        with pytest.raises(ArchiveUnavailable):
            await revision.check(archive.engine)
    finally:
        await asyncio.to_thread(postgres.start)
    assert await archive.record([outcome(2)]) == 1
    await archive.close()


async def test_parameters_of_the_address_work(postgres: PostgresServer) -> None:
    first, directory = postgres.url.split("host=")
    settings = Settings.from_environment(
        {
            "DATABASE_URL": f"{first}host=/none,{directory}&port=5432,5432&application_name=mine"
            "&options=-c%20lock_timeout%3D7s&connect_timeout=9&target_session_attrs=read-write&sslmode=prefer"
            "&statement_cache_size=0&prepared_statement_cache_size=0"
        }
    )
    await asyncio.to_thread(migrate.upgrade, settings)
    archive = Archive(create_engine(settings))
    async with archive.engine.connect() as connection:
        for name, expected in (("application_name", "mine"), ("lock_timeout", "7s")):
            assert (await connection.execute(text(f"SHOW {name}"))).scalar() == expected
    assert await archive.record([outcome(1)]) == 1
    await archive.close()


async def test_a_migration_may_take_longer_than_other_statements(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    await asyncio.to_thread(lambda: migrate.downgrade(migrated(settings), "base"))
    monkeypatch.setitem(create_engine.__kwdefaults__ or {}, "statement_timeout", 1)
    engine = create_engine(settings)
    # As one that is under way.
    lock = {
        "sqlite": "BEGIN IMMEDIATE",
        "postgresql": f"SELECT pg_advisory_xact_lock({LOCK})",
    }[engine.dialect.name]
    async with engine.connect() as other:
        await other.exec_driver_sql(lock)
        migrating = asyncio.create_task(asyncio.to_thread(migrate.upgrade, settings))
        await asyncio.wait([migrating], timeout=2.5)
        assert not migrating.done()
        await other.rollback()
        assert await asyncio.wait_for(migrating, 20) == revision.head_revision()
    await engine.dispose()


async def test_a_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    settings = Settings.from_environment({"DATABASE_URL": f"sqlite:///{tmp_path}/none/archive.db"})
    archive = Archive(create_engine(settings))
    with pytest.raises(ArchiveUnavailable, match="the database refuses: SQLITE_CANTOPEN"):
        await archive.ping()
    await archive.close()
    # aiosqlite's thread of a connection that failed ends a moment later, and speaks to this loop till then
    for thread in threading.enumerate():
        if "_connection_worker_thread" in thread.name:
            await asyncio.to_thread(thread.join, 10)


async def test_why_a_database_refuses_is_told_by_migration_check_and_use(postgres: PostgresServer) -> None:
    for url, why in (
        (postgres.url.replace("/postgres?", "/nowhere?"), "the database refuses: InvalidCatalogNameError"),
        ("postgresql://a:geheim@127.0.0.1:1/b", "the database does not answer: ConnectionRefusedError"),
    ):
        settings = Settings.from_environment({"DATABASE_URL": url})
        archive = Archive(create_engine(settings))
        for use in (
            asyncio.to_thread(migrate.upgrade, settings), revision.check(archive.engine), archive.ping(),
        ):  # fmt: skip
            with pytest.raises(ArchiveUnavailable, match=f"^{why}$"):
                await use
        await archive.close()
