"""`fedsvc import`: PieFed's send_queue moves to a real server, once, in order and at its times."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from fedsvc_client import AsyncFedsvcClient, DeliveryState
from servers.inbox import InboxServer
from servers.postgres import postgres_server
from servers.processes import Fedsvc

from fedsvc.cli.main import main

KEY_ID = "https://me.example/c/cats#main-key"
ADDRESSES = ("127.70.0.1", "127.70.0.2", "127.70.0.3")
SETTINGS = {"FEDSVC_ALLOW_HTTP": "true", "FEDSVC_ALLOWED_CIDRS": "127.0.0.0/8"}
LISTEN = ("--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0")


def send_queue() -> sa.Table:
    """As PieFed has it."""
    return sa.Table(
        "send_queue",
        sa.MetaData(),
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("destination_domain", sa.String(255), index=True),
        sa.Column("destination", sa.String(1024)),
        sa.Column("actor", sa.String(255), index=True),
        sa.Column("private_key", sa.String(2000)),
        sa.Column("payload", sa.Text),
        sa.Column("retries", sa.Integer),
        sa.Column("max_retries", sa.Integer),
        sa.Column("retry_reason", sa.String(255)),
        sa.Column("created", sa.DateTime),
        sa.Column("send_after", sa.DateTime, index=True),
    )


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with Fedsvc(tmp_path_factory.mktemp("dev"), "dev", *LISTEN, settings=SETTINGS) as fedsvc:
        yield fedsvc.ready()[0]


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/piefed.db"
    else:
        with postgres_server() as server:
            yield server.url


class PieFed:
    """Its table, by the name of this test."""

    def __init__(self, database: str, tmp_path: Path) -> None:
        self.database, self.directory = database, tmp_path
        self.engine = sa.create_engine(database.replace("postgresql:", "postgresql+psycopg:"))
        self.table = send_queue()
        self.table.create(self.engine)
        self.prefix = f"https://me.example/{self.engine.name}"

    def add(
        self, name: str, destination: str | None, pem: str | None, thing: str = "post", **changes: Any
    ) -> None:
        """What concerns one thing keeps its order."""
        now = datetime.now(UTC).replace(tzinfo=None)
        payload = {
            "@context": ["https://www.w3.org/ns/activitystreams"],
            "id": f"{self.prefix}/{name}",
            "type": "Add",
            "actor": "https://me.example/c/cats",
            "object": f"{self.prefix}/{thing}",
            "target": "https://me.example/c/cats/featured",
        }
        row: dict[str, Any] = {
            "destination": destination, "actor": KEY_ID, "private_key": pem, "payload": json.dumps(payload),
            "retries": 1, "max_retries": 40, "created": now, "send_after": now - timedelta(minutes=1),
        }  # fmt: skip
        with self.engine.begin() as connection:
            connection.execute(self.table.insert().values(row | changes))

    def ids(self) -> list[int]:
        with self.engine.begin() as connection:
            return list(connection.scalars(sa.select(self.table.c.id).order_by(self.table.c.id)))

    def run(self, target: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("FEDSVC_")}
        command = [sys.executable, "-m", "fedsvc", "import", "--from-env", "PIEFED", "--target", target]
        return subprocess.run(
            [*command, *arguments], cwd=self.directory, env=kept | {"PIEFED": self.database},
            capture_output=True, text=True, timeout=100,
        )  # fmt: skip


@pytest.fixture
def piefed(database: str, tmp_path: Path) -> Iterator[PieFed]:
    piefed = PieFed(database, tmp_path)
    yield piefed
    piefed.engine.dispose()


def fill(piefed: PieFed, inbox: InboxServer, pem: str) -> set[str]:
    """Eighteen good rows to three hosts, and one of each other kind. Returns names of those that arrive."""
    for number in range(18):
        piefed.add(f"{number}", inbox.url(ADDRESSES[number % 3]), pem)
    later = datetime.now(UTC).replace(tzinfo=None) + timedelta(hours=2)
    piefed.add("later", inbox.url(ADDRESSES[0]), pem, send_after=later)
    piefed.add("used-up", inbox.url(ADDRESSES[0]), pem, retries=41)
    piefed.add("nowhere", None, pem)
    piefed.add("broken", inbox.url(ADDRESSES[0]), pem, payload="{")
    piefed.add("no-key", inbox.url(ADDRESSES[0]), pem.replace("A", "B"), "another")
    piefed.add("elsewhere", "ftp://a.example/inbox", pem)
    piefed.add("nobody", inbox.url(ADDRESSES[0]), pem, actor="me")
    untyped = {"id": f"{piefed.prefix}/untyped", "type": "Add", "actor": "https://me.example/c/cats"}
    piefed.add("empty", inbox.url(ADDRESSES[0]), pem, payload=json.dumps(untyped))
    return {f"{piefed.prefix}/{number}" for number in range(18)}


async def test_a_send_queue_is_imported_once_in_order_and_at_its_times(
    target: str, piefed: PieFed, rsa_pem: str
) -> None:
    secret = rsa_pem.splitlines()[5]
    state = piefed.directory / "fedsvc-import.json"
    async with InboxServer(addresses=ADDRESSES) as inbox, AsyncFedsvcClient(target) as client:
        arriving = fill(piefed, inbox, rsa_pem)
        accepted = (await client.get_queue_stats()).accepted
        tried = await asyncio.to_thread(piefed.run, target, "--dry-run", "--json")
        told = json.loads(tried.stdout)
        assert (tried.returncode, told["would_import"], told["skipped"], told["scheduled"]) == (1, 19, 1, 1)
        assert [(row["id"], row["reason"]) for row in told["failed"]] == [
            (21, "destination is empty"),
            (22, "payload is no JSON"),
            (23, "private_key is not a private key in PEM (PKCS#1 or PKCS#8)"),
            (24, "destination must be http or https, not ftp"),
            (25, "actor, the id of the key, is not an absolute URL"),
            (26, "payload: activity.object is missing"),
        ]
        assert tried.stderr.endswith("\nfedsvc: 6 rows failed\n")
        assert "imported" not in told
        assert (told["hosts"], told["types"]) == (3, {"Add": 19})
        assert (await client.get_queue_stats()).accepted == accepted
        assert not state.exists()
        done = await asyncio.to_thread(piefed.run, target)
        assert done.returncode == 1
        assert (
            "imported 19 to 3 hosts, 1 of them for later; 0 were there already, 1 had used up" in done.stdout
        )
        assert "row 21: destination is empty" in done.stdout
        assert "row 23: INVALID" in done.stdout
        assert "row 26: INVALID_ACTIVITY: activity.object is missing" in done.stdout
        assert "\n  19 Add\n" in done.stdout
        await inbox.wait_for(18)
        assert {id for _, id in inbox.ids} == arriving
        assert set(inbox.ids.values()) == {1}
        for address in ADDRESSES:
            came = [json.loads(body)["id"] for host, body in inbox.received if host == address]
            assert came == sorted(came, key=lambda id: int(id.rsplit("/", 1)[1])), "in the order of the table"
        (waiting,) = (await client.list_deliveries(f"{piefed.prefix}/later")).deliveries
        assert waiting.state is DeliveryState.SCHEDULED
        assert waiting.not_before is not None
        assert timedelta(minutes=110) < waiting.not_before - datetime.now(UTC) < timedelta(minutes=121)
        again = await asyncio.to_thread(piefed.run, target, "--json")
        told = json.loads(again.stdout)
        assert (told["imported"], told["duplicates"], len(told["failed"])) == (0, 0, 6), (
            "it goes on at the end"
        )
        state.unlink()
        with piefed.engine.begin() as connection:  # what was wrong is put right
            connection.execute(
                piefed.table.update().where(piefed.table.c.id == 23).values(private_key=rsa_pem)
            )
        last = await asyncio.to_thread(piefed.run, target, "--json", "--delete")
        told = json.loads(last.stdout)
        assert (told["imported"], told["duplicates"], len(told["failed"])) == (1, 19, 5)
        assert piefed.ids() == [20, 21, 22, 24, 25, 26], "deleted is what the server has"
        await inbox.wait_for(19)
        assert set(inbox.ids.values()) == {1}
        for said in (tried, done, again, last):
            assert secret not in said.stdout + said.stderr
            assert "Traceback" not in said.stderr
        assert secret not in state.read_text()


async def test_an_import_that_is_killed_goes_on_and_sends_nothing_twice(
    target: str, piefed: PieFed, rsa_pem: str
) -> None:
    async with InboxServer(addresses=ADDRESSES) as inbox:
        for number in range(150):
            piefed.add(f"k{number}", inbox.url(ADDRESSES[0]), rsa_pem, f"thing/{number}")
        command = [sys.executable, "-m", "fedsvc", "import", "--from-env", "PIEFED", "--target", target]
        kept = {k: v for k, v in os.environ.items() if not k.startswith("FEDSVC_")}
        process = subprocess.Popen(
            command, cwd=piefed.directory, env=kept | {"PIEFED": piefed.database}, stderr=subprocess.DEVNULL
        )
        await inbox.wait_for(20)
        process.kill()
        process.wait()
        done = await asyncio.to_thread(piefed.run, target, "--json")
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert told["imported"] + told["duplicates"] < 150, "it did not begin anew"
        await inbox.wait_for(150)
        assert set(inbox.ids.values()) == {1}


def test_what_is_wrong_is_one_line(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    piefed = PieFed(f"sqlite:///{tmp_path}/piefed.db", tmp_path)
    with piefed.engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE other (id INTEGER, destination TEXT)"))
    (tmp_path / "state").write_text('{"source": "of another", "through": 1, "failed": {}}')
    (tmp_path / "nonsense").write_text("nonsense")
    cases: list[tuple[str, tuple[str, ...], int, str]] = [
        (piefed.database, ("--table", "nothing"), 1, "has no table nothing"),
        (piefed.database, ("--table", "other"), 1, "other has no column actor"),
        (piefed.database, ("--state", "state"), 1, "of another database or table"),
        (piefed.database, ("--state", "nonsense"), 1, "holds no progress"),
        (f"sqlite:///{tmp_path}/none.db", (), 1, "none.db is no file"),
        ("mysql://a:SECRET@b/c", (), 1, "--from: mysql is not supported"),
        ("postgresql://a:SECRET@/c?host=/nonexistent", ("--dry-run",), 1, "the database does not answer"),
        (piefed.database, ("--from", "sqlite:///x"), 2, "give one of --from and --from-env"),
        ("", (), 1, "PIEFED is not set"),
    ]
    for database, arguments, code, words in cases:
        monkeypatch.setenv("PIEFED", database)
        with pytest.raises(SystemExit) as left:
            main(["import", "--from-env", "PIEFED", "--target", target, *arguments])
        errors = capsys.readouterr().err
        assert (left.value.code, words in errors) == (code, True), (arguments, errors)
        assert "SECRET" not in errors
    assert not (tmp_path / "none.db").exists()
    piefed.engine.dispose()
