"""Applications and relays that are killed where it hurts: what was committed arrives, once, and nothing else
does."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from fedsvc_client import AsyncFedsvcClient, FedsvcClient
from fedsvc_client.outbox import Outbox, Relay
from servers.inbox import InboxServer
from servers.outbox_victim import KEY_ID, activity
from servers.postgres import PostgresServer
from servers.processes import Fedsvc

TESTS = Path(__file__).parents[1]
SETTINGS = {"FEDSVC_ALLOW_HTTP": "true", "FEDSVC_ALLOWED_CIDRS": "127.0.0.0/8"}
LISTEN = ("--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0")
#: keys that sign, which are lanes: rows of each go in order
KEYS = 3
ROWS = 12
DATABASES = ("sqlite", "postgresql")


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory, rsa_pem: str) -> Iterator[str]:
    with Fedsvc(tmp_path_factory.mktemp("dev"), "dev", *LISTEN, settings=SETTINGS) as fedsvc:
        target = fedsvc.ready()[0]
        with FedsvcClient(target) as client:
            for number in range(KEYS):
                client.put_key(KEY_ID.format(number), rsa_pem)
        yield target


@pytest.fixture(scope="module")
def databases(tmp_path_factory: pytest.TempPathFactory, postgres: PostgresServer) -> dict[str, str]:
    return {
        "sqlite": f"sqlite:///{tmp_path_factory.mktemp('app')}/app.db",
        "postgresql": postgres.url.replace("postgresql:", "postgresql+psycopg:"),
    }


def environment(target: str, inbox: InboxServer) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("FEDSVC_")}
    ours = {"FEDSVC_TARGET": target, "FEDSVC_CLIENT_TIMEOUT": "1", "INBOX": inbox.url()}
    return kept | ours | {"PYTHONPATH": str(TESTS)}


def made(database: str, table: str, inbox: InboxServer, rows: int) -> tuple[sa.Engine, Outbox]:
    """A table with so many rows."""
    engine, outbox = sa.create_engine(database), Outbox(name=table)
    outbox.table.metadata.create_all(engine)
    with engine.begin() as connection:
        for number in range(rows):
            key = KEY_ID.format(number % KEYS)
            outbox.queue_activity(connection, activity(table, number), inbox.url(), key_id=key)
    return engine, outbox


def waiting(engine: sa.Engine, outbox: Outbox) -> int:
    with engine.begin() as connection:
        return outbox.status(connection).waiting


async def killed(env: dict[str, str], *arguments: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "servers.outbox_victim", *arguments, env=env, cwd=TESTS
    )
    assert await asyncio.wait_for(process.wait(), 60) == -signal.SIGKILL, arguments


async def arrives_once(
    target: str, inbox: InboxServer, engine: sa.Engine, outbox: Outbox, names: set[str]
) -> None:
    """A relay that lives sends the rest; then each of `names` has been accepted once, and has arrived
    once."""
    with FedsvcClient(target, timeout=1) as client:
        relay = Relay(engine, client, outbox, lease=2)
        relay.start(poll=0.1)
        try:
            prefix = activity(outbox.table.name, "")["id"]
            async with asyncio.timeout(100):
                while {id for _, id in inbox.ids if id.startswith(prefix)} != names:
                    await inbox.wait_for(len(inbox.received) + 1)
                # Whoever called deletes afterwards; what it left, as it was killed, has a lease that ends.
                while waiting(engine, outbox):
                    await asyncio.sleep(0.05)
        finally:
            await asyncio.to_thread(relay.stop)
    assert {count for (_, id), count in inbox.ids.items() if id.startswith(prefix)} == {1}
    async with AsyncFedsvcClient(target) as asking:
        for name in names:
            assert len((await asking.list_deliveries(name)).deliveries) == 1
    assert waiting(engine, outbox) == 0
    engine.dispose()


@pytest.mark.parametrize("point", ["before-call", "after-call", "before-delete"])
async def test_a_relay_that_is_killed_loses_and_doubles_nothing(
    target: str, databases: dict[str, str], point: str
) -> None:
    async with InboxServer() as inbox:

        async def survive(kind: str) -> None:
            table = f"relay_{point.replace('-', '_')}"
            engine, outbox = made(databases[kind], f"{table}_{kind}", inbox, ROWS)
            names = {activity(outbox.table.name, number)["id"] for number in range(ROWS)}
            await killed(environment(target, inbox), databases[kind], outbox.table.name, point)
            assert waiting(engine, outbox) == ROWS - KEYS, "its first call was over"
            await arrives_once(target, inbox, engine, outbox, names)

        await asyncio.gather(*map(survive, DATABASES))


async def test_an_application_that_is_killed_has_written_what_it_committed(
    target: str, databases: dict[str, str]
) -> None:
    async with InboxServer() as inbox:

        async def survive(kind: str) -> None:
            engine, outbox = made(databases[kind], f"application_{kind}", inbox, 0)
            for point in ("before-commit", "after-commit"):
                await killed(environment(target, inbox), databases[kind], outbox.table.name, point)
            name = activity(outbox.table.name, "after-commit")["id"]
            await arrives_once(target, inbox, engine, outbox, {name})

        await asyncio.gather(*map(survive, DATABASES))


async def test_two_relays_of_the_command_line_are_killed_again_and_again(
    target: str, databases: dict[str, str]
) -> None:
    """Wherever they are: after each eighth row that arrives, one of the two, by turns."""
    rows, kills = 30, 3
    async with InboxServer() as inbox:

        def run(kind: str, table: str) -> subprocess.Popen[bytes]:
            command = [sys.executable, "-m", "fedsvc_client.outbox", "--database", databases[kind]]
            command += ["--table", table, "run", "--lease", "2", "--poll", "0.05"]
            quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            return subprocess.Popen(command, env=environment(target, inbox), **quiet)

        async def survive(kind: str) -> None:
            engine, outbox = made(databases[kind], f"killed_{kind}", inbox, rows)
            table = outbox.table.name
            names = {activity(table, number)["id"] for number in range(rows)}
            prefix = activity(table, "")["id"]
            relays = [run(kind, table), run(kind, table)]
            try:
                async with asyncio.timeout(100):
                    for kill in range(kills):
                        while sum(id.startswith(prefix) for _, id in inbox.ids) < 8 * (kill + 1):
                            await inbox.wait_for(len(inbox.received) + 1)
                        relays[kill % 2].kill()
                        relays[kill % 2].wait()
                        relays[kill % 2] = run(kind, table)
                await arrives_once(target, inbox, engine, outbox, names)
            finally:
                engine.dispose()
                for relay in relays:
                    relay.terminate()
                # One that has only just begun does not listen to the signal yet.
                codes = {relay.wait(30) for relay in relays}
                assert codes <= {0, -signal.SIGTERM}, "they end in order"

        await asyncio.gather(*map(survive, DATABASES))
