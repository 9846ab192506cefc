"""What takes outcomes from the queue to SQL."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from servers.archiving import PARTITIONS, START, System, opened, stop, until
from servers.postgres import PostgresServer
from servers.valkey import ValkeyServer
from sqlalchemy import text
from structlog.testing import capture_logs

from fedsvc.config import Settings
from fedsvc.domain.delivery import Delivery
from fedsvc.domain.events import HostEvent
from fedsvc.errors import ArchiveUnavailable, QueueUnavailable
from fedsvc.queue.link import Link
from fedsvc.queue.outcomes import OutcomeLog
from fedsvc.worker import archival_handler
from fedsvc.worker.affinity import Affinity
from fedsvc.worker.archival_handler import ArchivalHandler
from fedsvc.worker.rounds import Rounds


async def test_what_ended_is_archived_once_and_the_position_moves(system: System) -> None:
    for partition in range(PARTITIONS):
        await system.end_many(partition, range(10 * partition))
    handler = system.handler()
    assert not await handler.round()
    assert await system.rows() == 60
    assert await system.positions() == [-1, 9, 19, 29]
    assert not await handler.round()
    assert system.archive.transactions == [60]


async def test_only_the_leader_archives(system: System) -> None:
    await system.end(0, 1)
    assert await system.outcomes.lead(0, "b")
    await system.handler("a").round()
    assert await system.rows() == 0
    await system.handler("b").round()
    assert await system.rows() == 1


async def leaders(system: System) -> list[str]:
    names = [await system.link.call("GET", system.keys.partition(p).archiver) for p in range(PARTITIONS)]
    return [(name or b"nobody").decode() for name in names]


async def test_workers_share_the_archive_and_one_that_comes_has_its_part_at_once(system: System) -> None:
    a, b = (Affinity(name, PARTITIONS) for name in "ab")
    first, second = system.handler(affinity=a), system.handler(affinity=b)
    await first.round()
    assert await leaders(system) == ["a"] * PARTITIONS
    for affinity in (a, b):
        affinity.see({"a", "b"})
    await first.round()
    await second.round()
    assert await leaders(system) == ["a" if p in a.own else "b" for p in range(PARTITIONS)]
    for partition in range(PARTITIONS):
        await system.end(partition, 1)
    await first.round()
    assert await system.positions() == [1 if p in a.own else -1 for p in range(PARTITIONS)]
    await second.round()
    assert await system.positions() == [1] * PARTITIONS
    assert await system.rows() == PARTITIONS


@pytest.mark.usefixtures("small")
async def test_what_nobody_archives_is_helped_out_with_and_given_back(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(archival_handler, "Rounds", lambda a, whole_s: Rounds(a, whole_s, lambda: now))
    mine, theirs = Affinity("a", PARTITIONS), Affinity("b", PARTITIONS)
    for affinity in (mine, theirs):
        affinity.see({"a", "b"})
    partition = min(theirs.own)
    await system.end_many(partition, range(1500))
    handler = system.handler(affinity=mine)
    assert not await handler.round(), "its worker may be there"
    assert await system.rows() == 0
    now += ArchivalHandler.WHOLE
    assert await handler.round(), "there is more"
    assert (await leaders(system))[partition] == "a"
    assert not await handler.round()
    assert await system.rows() == 1500
    await handler.round()
    assert (await leaders(system))[partition] == "nobody"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transactions of a thousand, read by quarters."""
    monkeypatch.setattr(ArchivalHandler, "MAX_TRANSACTION", 1000)
    monkeypatch.setattr(ArchivalHandler, "AT_A_TIME", 250)


@pytest.mark.usefixtures("small")
async def test_one_that_is_far_behind_has_what_the_others_leave_of_a_transaction(system: System) -> None:
    await system.end_many(1, range(2500))
    await system.end_many(2, range(10))
    handler = system.handler()
    assert [await handler.round() for _ in range(4)] == [True, True, False, False]
    assert await system.rows() == 2510
    assert await system.positions() == [-1, 2499, 9, -1]
    assert system.archive.transactions == [1000, 1000, 510]


class Watched(OutcomeLog):
    """Knows how many outcomes were asked for at the same time, at most."""

    asked = most = 0

    async def read_all(
        self, partition: int, after: int, limit: int
    ) -> tuple[list[Delivery | HostEvent], int, int]:
        self.asked += limit
        self.most = max(self.most, self.asked)
        try:
            return await super().read_all(partition, after, limit)
        finally:
            self.asked -= limit


@pytest.mark.usefixtures("small")
async def test_no_more_is_read_at_a_time_than_can_be_taken_apart_at_once(system: System) -> None:
    for partition in range(PARTITIONS):
        await system.end_many(partition, range(200))
    outcomes = Watched(system.link, system.keys, system.settings)
    assert not await system.handler(outcomes=outcomes).round()
    assert await system.rows() == 800
    assert 0 < outcomes.most <= ArchivalHandler.AT_A_TIME


@pytest.mark.usefixtures("small")
async def test_many_that_are_far_behind_share_a_transaction(system: System) -> None:
    for partition in range(PARTITIONS):
        await system.end_many(partition, range(300))
    assert await system.handler().round()
    assert await system.positions() == [249] * PARTITIONS
    assert system.archive.transactions == [1000]


async def test_events_and_what_others_wrote_are_passed_over(system: System) -> None:
    await system.end(0, 1)
    await system.end(0, 2, state=0)
    await system.end(1, 3, state=0)
    await system.link.call(
        "XADD", system.keys.partition(2).outcomes, f"{START + 5_000_004}-0", "strange", "entry"
    )
    await system.handler().round()
    assert await system.positions() == [2, 3, 4, -1]
    assert await system.rows() == 1


@pytest.mark.parametrize(
    "payload",
    [
        b'{"event":"KEY_REJECTED","host":"h.example","detail":"a\\u0000b"}',
        b'{"event":"HOST_DOWN","host":"h\\u0000.example","detail":""}',
        b'{"event":"KEY_REJECTED","host":"h.example","detail":null}',
        b'{"event":"HOST_DOWN","host":7,"detail":""}',
    ],
)
async def test_an_event_that_is_not_as_it_should_be_blocks_nothing(system: System, payload: bytes) -> None:
    await system.link.call(
        "XADD", system.keys.partition(0).outcomes, f"{START + 5_000_001}-0", "d", 0, "s", 0, "o", payload
    )
    await system.end(0, 2)
    await system.handler().round()
    assert await system.positions() == [2, -1, -1, -1]
    assert await system.rows() == 1


def die_after_sql(environment: dict[str, str]) -> None:
    """Archive in a process that is killed once SQL has committed, before Redis is told."""

    class Killed(OutcomeLog):
        async def commit(self, partition: int, after: int, number: int, count: int) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

    async def work() -> None:
        settings = Settings.from_environment(environment)
        link = Link.from_settings(settings)
        system = System(settings, link)
        await system.handler("killed", Killed(link, system.keys, settings)).round()

    asyncio.run(work())


async def test_a_batch_whose_archiver_was_killed_before_it_told_redis_makes_no_second_row(
    system: System,
) -> None:
    for partition in range(PARTITIONS):
        await system.end_many(partition, range(50))
    environment = system.settings.to_environment() | {"FEDSVC_LEASE": "0.5"}
    process = multiprocessing.get_context("spawn").Process(target=die_after_sql, args=(environment,))
    process.start()
    await asyncio.to_thread(process.join, 60)
    assert process.exitcode == -signal.SIGKILL
    assert await system.rows() == 50 * PARTITIONS, "SQL has committed"
    assert await system.positions() == [-1] * PARTITIONS, "Redis was not told"
    await system.end_many(0, range(50, 60))
    async with asyncio.timeout(20):
        while await system.positions() != [59, 49, 49, 49]:
            await system.handler().round()  # once the lease of the killed one is over
    assert await system.rows() == 50 * PARTITIONS + 10


@asynccontextmanager
async def refused(system: System, condition: str) -> AsyncIterator[None]:
    """The table refuses rows that meet `condition` (SQL)."""
    if system.archive.engine.dialect.name == "sqlite":
        begin = (
            f"CREATE TRIGGER refused BEFORE INSERT ON deliveries WHEN NEW.{condition} "
            "BEGIN SELECT RAISE(ABORT, 'refused'); END"
        )
        end = "DROP TRIGGER refused"
    else:
        begin = f"ALTER TABLE deliveries ADD CONSTRAINT refused CHECK (NOT ({condition})) NOT VALID"
        end = "ALTER TABLE deliveries DROP CONSTRAINT refused"
    async with system.archive.engine.begin() as connection:
        await connection.execute(text(begin))
    try:
        yield
    finally:
        async with system.archive.engine.begin() as connection:
            await connection.execute(text(end))


async def test_an_outcome_that_sql_can_never_hold_is_told_and_blocks_nothing(system: System) -> None:
    for partition in range(PARTITIONS):
        await system.end_many(partition, range(100))
    async with refused(system, "host IN ('h7.example', 'h99.example')"):
        with capture_logs() as logs:
            await system.handler().round()
    assert await system.rows() == 98 * PARTITIONS
    assert await system.positions() == [99] * PARTITIONS
    errors = [entry for entry in logs if entry["log_level"] == "error"]
    assert {entry["delivery"] for entry in errors} == {
        f"{p}-{START + n}" for p in range(PARTITIONS) for n in (7, 99)
    }
    assert len(errors) == 2 * PARTITIONS
    assert {entry["event"] for entry in errors} == {"outcome_never_archived"}


@pytest.mark.parametrize("away", ["Redis", "SQL"])
async def test_an_outcome_that_sql_can_never_hold_is_told_once_however_often_its_batch_comes(
    system: System, monkeypatch: pytest.MonkeyPatch, away: str
) -> None:
    await system.end_many(0, range(4))
    handler, record = system.handler(), system.archive.record

    async def unheard(*archived: int) -> None:
        raise QueueUnavailable("Redis is away")

    async def unanswered(outcomes: Sequence[Delivery]) -> int:
        """Once what is refused has been found, the rest cannot be written."""
        if len(outcomes) == 2 and outcomes[-1].host == "h3.example":
            raise ArchiveUnavailable("SQL is away")
        return await record(outcomes)

    async with refused(system, "host IN ('h1.example')"):
        with capture_logs() as logs:
            with monkeypatch.context() as patch:
                if away == "Redis":
                    patch.setattr(system.outcomes, "commit", unheard)
                else:
                    patch.setattr(system.archive, "record", unanswered)
                for _ in range(3):
                    with pytest.raises((QueueUnavailable, ArchiveUnavailable), match="is away"):
                        await handler.round()
            await handler.round()
    assert [(entry["event"], entry["delivery"]) for entry in logs] == [
        ("outcome_never_archived", f"0-{START + 1}")
    ]
    assert (await system.rows(), (await system.positions())[0]) == (3, 3)


async def test_a_table_that_takes_nothing_costs_no_outcome(system: System) -> None:
    await system.end_many(0, range(10))
    async with refused(system, "host IS NOT NULL"):
        with capture_logs() as logs, pytest.raises(ArchiveUnavailable, match="not as it should be"):
            await system.handler().round()
        assert logs == []
        assert await system.positions() == [-1] * PARTITIONS
    await system.handler().round()
    assert await system.rows() == 10


async def test_a_partition_that_cannot_be_read_holds_up_no_other(system: System) -> None:
    class Partly(OutcomeLog):
        """One master of several is away."""

        async def read_all(
            self, partition: int, after: int, limit: int
        ) -> tuple[list[Delivery | HostEvent], int, int]:
            if partition == 2:
                raise QueueUnavailable("its master is away")
            return await super().read_all(partition, after, limit)

    for partition in range(PARTITIONS):
        await system.end_many(partition, range(10))
    with pytest.raises(QueueUnavailable, match="its master"):
        await system.handler(outcomes=Partly(system.link, system.keys, system.settings)).round()
    assert await system.positions() == [9, 9, -1, 9]
    await system.handler().round()
    assert await system.positions() == [9] * PARTITIONS


@pytest.mark.usefixtures("small")
async def test_one_of_which_the_rest_cannot_be_read_is_archived_so_far_and_told(system: System) -> None:
    class Once(OutcomeLog):
        """A master goes away after its first answer."""

        async def read_all(
            self, partition: int, after: int, limit: int
        ) -> tuple[list[Delivery | HostEvent], int, int]:
            if partition == 2 and after:
                raise QueueUnavailable("its master is away")
            return await super().read_all(partition, after, limit)

    for partition in (1, 2):
        await system.end_many(partition, range(300))
    with pytest.raises(QueueUnavailable, match="its master"):
        await system.handler(outcomes=Once(system.link, system.keys, system.settings)).round()
    _, first, second, _ = await system.positions()
    assert (first > second, second) == (True, ArchivalHandler.AT_A_TIME // PARTITIONS - 1)
    assert await system.rows() == first + second + 2
    while await system.handler().round():
        pass
    assert await system.positions() == [-1, 299, 299, -1]


async def test_of_more_partitions_than_are_read_at_a_time_each_is_read(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ArchivalHandler, "AT_A_TIME", PARTITIONS - 1)
    monkeypatch.setattr(ArchivalHandler, "MAX_TRANSACTION", PARTITIONS)
    for partition in range(PARTITIONS):
        await system.end_many(partition, range(2))
    assert await system.handler().round()
    assert await system.positions() == [0] * PARTITIONS


@pytest.mark.parametrize("step", ["lead", "commit", "resign"])
async def test_whatever_redis_does_not_do_for_one_partition_holds_up_no_other(
    system: System, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    affinity = Affinity("a", PARTITIONS)
    handler = system.handler(affinity=affinity)
    await handler.round()
    if step == "resign":
        affinity.see({"a", "b"})
    ours = sorted(affinity.own)
    for partition in range(PARTITIONS):
        await system.end_many(partition, range(10))
    does = getattr(OutcomeLog, step)
    failing = min(affinity.all - affinity.own) if step == "resign" else ours[1]

    async def partly(self: OutcomeLog, partition: int, *more: Any) -> Any:
        if partition == failing:
            raise QueueUnavailable("its master is away")
        return await does(self, partition, *more)

    with monkeypatch.context() as patch:
        patch.setattr(OutcomeLog, step, partly)
        with pytest.raises(QueueUnavailable, match="its master"):
            await handler.round()
    assert [p for p, at in enumerate(await system.positions()) if at == 9] == [
        p for p in ours if p != failing
    ]
    await handler.round()
    assert [p for p, at in enumerate(await system.positions()) if at == 9] == ours


async def test_after_an_outage_of_sql_all_is_caught_up_with_in_full_transactions(
    postgres: PostgresServer, valkey: ValkeyServer, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ArchivalHandler, "AWAY", 0.05)
    monkeypatch.setattr(ArchivalHandler, "PING_EVERY", 0.05)
    async with opened(postgres.url, valkey, namespace) as system:
        await asyncio.to_thread(postgres.stop)
        running = asyncio.create_task(system.handler().run())
        try:
            await until(lambda: "database" in system.beats.problems.get("archive", ""))
            await system.end_many(3, range(5000))
        finally:
            await asyncio.to_thread(postgres.start)
        await until(lambda: "archive" not in system.beats.problems)
        async with asyncio.timeout(60):
            while (await system.positions())[3] != 4999:
                await asyncio.sleep(0.01)
        await stop(running)
        assert await system.rows() == 5000
        # One may have begun while the outcomes still came.
        assert max(system.archive.transactions) <= ArchivalHandler.MAX_TRANSACTION
        assert len(system.archive.transactions) <= 2 + 1
