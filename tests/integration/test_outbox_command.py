"""`fedsvc-outbox`, and the table as docs and migrations have it."""

from __future__ import annotations

import json
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.operations import Operations
from fedsvc_client.outbox import Outbox
from fedsvc_client.outbox.__main__ import main
from grpc import StatusCode
from servers.scripted import Refused, Scripted, scripted

ROOT = Path(__file__).parents[2]
KEY_ID = "https://me.example/u/ada#main-key"


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[sa.Engine]:
    url = f"sqlite:///{tmp_path}/app.db"
    monkeypatch.setenv("FEDSVC_CLIENT_DATABASE_URL", url)
    engine = sa.create_engine(url)
    yield engine
    engine.dispose()


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scripted]:
    with scripted() as script:
        monkeypatch.setenv("FEDSVC_TARGET", script.target)
        monkeypatch.setattr("signal.signal", lambda number, handler: None)
        yield script


def write(engine: sa.Engine, *names: str) -> None:
    outbox = Outbox()
    with engine.begin() as connection:
        for name in names:
            sent = {"id": f"https://me.example/{name}", "type": "Like"}
            outbox.queue_activity(connection, sent, "https://a.example/inbox", key_id=KEY_ID)


def test_it_makes_the_table_sends_and_shows_what_was_put_aside(
    engine: sa.Engine, script: Scripted, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def judge(request: Any) -> None:
        if b"/bad" in request.activity:
            raise Refused(StatusCode.INVALID_ARGUMENT, "is no activity", reason="INVALID_ACTIVITY")

    def told() -> list[Any]:
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    keys = types.ModuleType("application_keys")
    keys.find = lambda key_id: f"pem of {key_id}"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "application_keys", keys)
    assert main(["ddl"]) == 0
    with engine.begin() as connection:
        for statement in filter(str.strip, capsys.readouterr().out.split(";")):
            connection.execute(sa.text(statement))
    write(engine, "good", "bad", "better")
    script.judge = judge
    assert main(["run", "--until-empty", "--keys", "application_keys:find"]) == 0
    assert told() == [{"claimed": 3, "sent": 2, "put_aside": 1, "later": 0}]
    assert script.calls[0].signing_key.private_key_pem == f"pem of {KEY_ID}"
    assert main(["status"]) == 0
    assert told() == [{"waiting": 0, "put_aside": 1, "oldest_age": 0.0}]
    assert main(["aside"]) == 0
    (aside,) = told()
    assert (aside["key_id"], "is no activity" in aside["reason"]) == (KEY_ID, True)
    script.judge = lambda request: None
    assert main(["retry", str(aside["id"])]) == 0
    assert told() == [{"retried": 1}]
    assert main(["run", "--until-empty"]) == 0
    assert told()[0]["sent"] == 1


def test_what_is_wrong_is_one_line_that_shows_no_password(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, script: Scripted
) -> None:
    database = ("--database", f"sqlite:///{tmp_path}/app.db")
    for name in ("FEDSVC_CLIENT_DATABASE_URL", "DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    cases: list[tuple[tuple[str, ...], int, str]] = [
        (("status",), 1, "name the database"),
        (
            ("--database", "postgresql+psycopg://a:SECRET@/x?host=/nonexistent", "status"),
            1,
            "OperationalError",
        ),
        (("--database", "nonsense", "status"), 1, "--database is no URL of a database that SQLAlchemy knows"),
        (("--database", "nonsense+secret://h", "status"), 1, "--database is no URL"),
        (("--database", "postgresql://me:SECRET/d", "status"), 1, "--database is no URL"),
        (("--database", "postgresql+pg8000://h/d", "status"), 1, "the driver pg8000 is not installed"),
        ((*database, "status"), 1, "OperationalError"),
        ((*database, "run", "--until-empty", "--keys", "nowhere:found"), 1, "No module named 'nowhere'"),
        ((*database, "run", "--until-empty", "--keys", "json:nothing"), 1, "nothing"),
        ((*database, "run", "--lease", "1"), 1, "not longer than the client's timeout"),
        ((*database, "retry"), 2, "either IDs or --all"),
    ]
    for arguments, code, words in cases:
        try:
            found = main(arguments)
        except SystemExit as leave:
            found = int(str(leave.code))
        errors = capsys.readouterr().err
        assert (found, words in errors) == (code, True), (arguments, errors)
        assert "SECRET" not in errors
        assert "Traceback" not in errors


def test_the_migration_of_the_docs_makes_the_table(engine: sa.Engine) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/client.md").read_text(), re.DOTALL)
    (migration,) = [block for block in blocks if "op.create_table" in block]
    found: dict[str, Any] = {}
    exec(compile(migration, "docs/client.md", "exec"), found)
    outbox = Outbox()
    with engine.begin() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        with Operations.context(context):
            found["upgrade"]()
            assert compare_metadata(context, outbox.table.metadata) == []
            found["downgrade"]()
            assert compare_metadata(context, outbox.table.metadata) != []
