"""The client's outbox: what is committed is handed over once and in order."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import flask
import flask_sqlalchemy
import pytest
import sqlalchemy as sa
from fedsvc_client import FedsvcClient, InvalidRequest, PermissionDenied, Unavailable
from fedsvc_client.outbox import Outbox, Relay, Round, SqlCursor
from servers.interrupts import IN_AN_EVENT, ends_though_interrupted
from servers.outbox import ADA, BOB, activity, arrived, inbox, rows, write
from servers.scripted import Scripted
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session


def test_an_activity_is_handed_over_if_and_only_if_its_transaction_was_committed(
    engine: sa.Engine, outbox: Outbox, client: FedsvcClient, script: Scripted
) -> None:
    relay = Relay(engine, client, outbox, keys={ADA: "pem of ada"}.get)
    later = datetime.now(UTC) + timedelta(hours=1)
    with Session(engine) as session:
        outbox.queue_activity(session, activity("rolled back"), inbox(1), key_id=ADA)
        session.rollback()
        assert relay.run_once() == Round()
        name = outbox.queue_activity(
            session, activity("committed"), inbox(1), key_id=ADA, priority="bulk", not_before=later,
            ordering_key="o", supersede_key="s", content_type="application/ld+json", shared_inbox=True,
        )  # fmt: skip
        session.commit()
    assert relay.run_once() == Round(claimed=1, sent=1)
    (call,) = script.calls
    assert json.loads(call.activity) == activity("committed")
    assert (call.request_id, call.inbox, call.signing_key.key_id) == (name, inbox(1), ADA)
    assert call.signing_key.private_key_pem == "pem of ada"
    options = call.options
    assert (options.priority, options.ordering_key, options.supersede_key) == (3, "o", "s")
    assert (options.content_type, options.shared_inbox) == ("application/ld+json", True)
    assert options.not_before.ToDatetime(tzinfo=UTC) == later
    assert rows(engine, outbox) == [], "what was sent is deleted"


def test_exact_bytes_travel_and_a_name_of_one_s_own_is_written_once(
    engine: sa.Engine, outbox: Outbox, client: FedsvcClient, script: Scripted
) -> None:
    body = b'{"id":  "https://me.example/x", "type": "Like"}'
    with engine.begin() as connection:
        outbox.queue_activity(connection, body, inbox(0), key_id=ADA, request_id="mine")
    with pytest.raises(sa.exc.IntegrityError), engine.begin() as connection:
        outbox.queue_activity(connection, body, inbox(0), key_id=ADA, request_id="mine")
    Relay(engine, client, outbox).run_once()
    assert [call.activity for call in script.calls] == [body]
    assert script.calls[0].signing_key.private_key_pem == "", "the server keeps the key"


def test_what_cannot_be_sent_is_refused_when_it_is_written(engine: sa.Engine, outbox: Outbox) -> None:
    with engine.begin() as connection:
        bads: tuple[dict[str, Any], ...] = (
            {"activity": {"x": float("nan")}},
            {"destinations": []},
            {"destinations": inbox(0)},
            {"destinations": [inbox(0), None]},
            {"destinations": ["https://a.example/\ud800"]},
            {"key_id": ""},
            {"key_id": 5},
            {"key_id": f"{ADA}\0"},
            {"request_id": "n" * 129},
            {"request_id": "n\0"},
            {"request_id": 5},
            {"ordering_key": 5},
            {"supersede_key": "\ud800"},
            {"priority": "soon"},
            {"not_before": datetime(2026, 1, 1)},  # noqa: DTZ001
        )
        for bad in bads:
            given: dict[str, Any] = {"activity": activity(1), "destinations": [inbox(0)], "key_id": ADA} | bad
            sent, to = given.pop("activity"), given.pop("destinations")
            with pytest.raises(InvalidRequest):
                outbox.fan_out(connection, sent, to, **given)
        for bad_inbox in (None, "https://a.example/\ud800"):
            with pytest.raises(InvalidRequest, match="destination"):
                outbox.queue_activity(connection, activity(1), bad_inbox, key_id=ADA)  # type: ignore[arg-type]
    assert rows(engine, outbox) == []


@pytest.mark.parametrize("poll", [0, -1.0, float("nan"), "1"])
def test_a_relay_that_could_not_run_does_not_start(
    engine: sa.Engine, outbox: Outbox, client: FedsvcClient, poll: Any
) -> None:
    relay = Relay(engine, client, outbox)
    for begin in (relay.start, relay.run):
        with pytest.raises(InvalidRequest, match="poll must be a number of seconds"):
            begin(poll=poll)
    for name in ("batch", "lanes", "depth", "max_attempts"):
        with pytest.raises(InvalidRequest, match=f"{name}.* at least 1"):
            Relay(engine, client, outbox, **{name: 0})  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="lease must be a number of seconds"):
        Relay(engine, client, outbox, lease=float("nan"))


@pytest.mark.filterwarnings("error")
async def test_a_session_of_asyncio_loses_no_activity_in_silence(tmp_path: Path) -> None:
    metadata = sa.MetaData()
    outbox = Outbox(metadata=metadata)
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/outbox.db")
    try:
        async with engine.begin() as connection:
            await connection.run_sync(metadata.create_all)
        async with AsyncSession(engine) as session:
            with pytest.raises(InvalidRequest, match="session is one of asyncio"):
                outbox.queue_activity(session, activity(1), inbox(0), key_id=ADA)
            await session.run_sync(lambda s: outbox.queue_activity(s, activity(1), inbox(0), key_id=ADA))
            await session.commit()
            assert (await session.run_sync(outbox.status)).waiting == 1
    finally:
        await engine.dispose()


def test_a_server_or_database_that_is_away_is_waited_for_and_what_was_sent_is_summed_up(
    engine: sa.Engine, outbox: Outbox, client: FedsvcClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay = Relay(engine, client, outbox)
    rounds: list[Any] = [
        Round(claimed=3, sent=1, put_aside=1, later=1),
        Unavailable("away"),
        sa.exc.OperationalError("SELECT 1", None, OSError("gone")),
        PermissionDenied("no such token"),
        Round(claimed=1, sent=1),
        *[Unavailable("away")] * 6,
        Round(claimed=2, later=2),
        Round(),
    ]
    pauses: list[float] = []

    def run_once() -> Round:
        done = rounds.pop(0)
        if isinstance(done, Exception):
            raise done
        assert isinstance(done, Round)
        return done

    monkeypatch.setattr(relay, "run_once", run_once)
    monkeypatch.setattr(relay._stopped, "wait", pauses.append)
    total = relay.run(until_empty=True)
    assert total == Round(claimed=6, sent=2, put_aside=1, later=3)
    assert pauses == [1, 2, 4, 1, 2, 4, 8, 16, 30]


def test_a_relay_in_a_thread_is_woken_stops_at_once_and_may_stop_itself(
    engine: sa.Engine, outbox: Outbox, client: FedsvcClient, script: Scripted
) -> None:
    asked = threading.Event()

    def keys(key_id: str) -> None:
        asked.set()
        if key_id == BOB:
            itself.stop()

    relay = Relay(engine, client, outbox, keys=keys)
    relay.start(poll=1000)
    write(engine, outbox, "one")
    relay.wake()
    assert asked.wait(10)
    relay.stop()
    assert relay._thread is not None
    assert not relay._thread.is_alive()
    assert arrived(script) == ["one"]
    itself = Relay(engine, client, outbox, keys=keys)
    write(engine, outbox, "two", key_id=BOB)
    itself.start(poll=1000)
    assert itself._thread is not None
    itself._thread.join(10)
    assert not itself._thread.is_alive()
    assert arrived(script) == ["one", "two"], "the call under way is ended"


def test_a_table_of_another_name_is_the_one_that_is_read(
    engine: sa.Engine, client: FedsvcClient, script: Scripted
) -> None:
    other = Outbox(name="my_outbox")
    other.table.metadata.create_all(engine)
    try:
        write(engine, other, "one")
        assert Relay(engine, client, other).run_once() == Round(claimed=1, sent=1)
        assert arrived(script) == ["one"]
    finally:
        other.table.drop(engine)


def test_one_claim_has_the_first_rows_of_many_keys_and_leaves_the_others(
    engine: sa.Engine, outbox: Outbox, client: FedsvcClient, script: Scripted
) -> None:
    for number in range(3):
        for key in range(4):
            write(engine, outbox, f"{key}-{number}", key_id=f"https://me.example/u/{key}#main-key")
    relay = Relay(engine, client, outbox, lanes=3, depth=2)
    assert relay.run_once() == Round(claimed=6, sent=6)
    assert sorted(arrived(script)) == ["0-0", "0-1", "1-0", "1-1", "2-0", "2-1"]
    assert relay.run_once() == Round(claimed=4, sent=4)
    assert sorted(arrived(script)[6:]) == ["0-2", "1-2", "3-0", "3-1"], "the oldest first"
    assert relay.run_once() == Round(claimed=2, sent=2)


def test_rows_of_a_key_go_in_order_and_a_call_has_one_at_most_for_a_host(
    engine: sa.Engine, outbox: Outbox, client: FedsvcClient, script: Scripted
) -> None:
    for number in range(30):
        write(engine, outbox, f"a{number}", host=number % 3)
    for number in range(4):
        write(engine, outbox, f"b{number}", key_id=BOB)
    with engine.begin() as connection:
        outbox.fan_out(connection, activity("a30"), map(inbox, range(3)), key_id=ADA)
    write(engine, outbox, "a31")
    assert Relay(engine, client, outbox, depth=100).run(until_empty=True).sent == 36
    came = arrived(script)
    assert [n for n in came if n[0] == "b"] == [f"b{n}" for n in range(4)]
    for host in range(3):
        of_host = [int(n[1:]) for n in came if n[0] == "a" and int(n[1:]) % 3 == host and int(n[1:]) < 30]
        assert of_host == sorted(of_host)
    assert [n for n in came if n[0] == "a"][-2:] == ["a30", "a31"], (
        "a fan-out goes after and before all others"
    )
    for call in script.calls:
        items = getattr(call, "requests", [])
        assert len({(i.inbox, i.signing_key.key_id) for i in items}) == len(items)
    assert any(len(getattr(call, "requests", [])) > 1 for call in script.calls), "it does send batches"


def test_an_ordering_key_orders_across_signing_keys(
    engine: sa.Engine, outbox: Outbox, client: FedsvcClient, script: Scripted
) -> None:
    for number in range(6):
        write(engine, outbox, number, key_id=(ADA, BOB)[number % 2], ordering_key="post 1")
    Relay(engine, client, outbox).run(until_empty=True)
    assert arrived(script) == [str(n) for n in range(6)]


def test_several_relays_double_nothing_and_keep_the_order(
    engine: sa.Engine, outbox: Outbox, script: Scripted
) -> None:
    total = 240
    with engine.begin() as connection:
        for number in range(total):
            key = f"https://me.example/u/{number % 6}#main-key"
            outbox.queue_activity(connection, activity(f"{number % 6}-{number}"), inbox(0), key_id=key)
    ready = threading.Barrier(4)
    done: list[Round] = []

    def work() -> None:
        with FedsvcClient(script.target) as client:
            relay = Relay(engine, client, outbox, lanes=2, depth=5)
            ready.wait()
            while rows(engine, outbox):
                done.append(relay.run_once())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sum(round.sent for round in done) == total
    came = arrived(script)
    assert len(came) == len(set(came)) == total, "nobody calls what another has in hand"
    for lane in range(6):
        of_lane = [int(n.split("-")[1]) for n in came if n.startswith(f"{lane}-")]
        assert of_lane == sorted(of_lane)


def test_a_lease_that_is_over_before_a_call_may_be_is_refused(
    engine: sa.Engine, client: FedsvcClient
) -> None:
    with pytest.raises(ValueError, match="not longer than the client's timeout"):
        Relay(engine, client, lease=2.0)


def test_it_runs_in_a_thread_until_it_is_stopped(
    engine: sa.Engine, outbox: Outbox, client: FedsvcClient, script: Scripted
) -> None:
    came = threading.Event()
    script.judge = lambda request: came.set()
    relay = Relay(engine, client, outbox)
    relay.start(poll=60)
    write(engine, outbox, "one")
    relay.wake()
    assert came.wait(20)
    relay.stop()
    assert rows(engine, outbox) == []


def test_a_signal_handler_may_stop_it_while_it_waits(
    engine: sa.Engine, outbox: Outbox, client: FedsvcClient
) -> None:
    relay = Relay(engine, client, outbox)
    assert ends_though_interrupted(relay.run, relay.stop, IN_AN_EVENT, ("Relay.run", "Bell.wait"))


def test_it_writes_in_flask_sqlalchemy_s_session(script: Scripted, tmp_path: Path) -> None:
    app = flask.Flask("app")
    app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{tmp_path}/flask.db"
    db = flask_sqlalchemy.SQLAlchemy(app)
    outbox = Outbox(metadata=db.metadata)
    with app.app_context(), FedsvcClient(script.target) as client:
        db.create_all()
        outbox.queue_activity(db.session, activity("rolled back"), inbox(0), key_id=ADA)
        db.session.rollback()
        outbox.queue_activity(db.session, activity("committed"), inbox(0), key_id=ADA)
        db.session.commit()
        assert outbox.status(db.session).waiting == 1
        db.session.rollback()
        Relay(db.engine, client, outbox).run_once()
        assert arrived(script) == ["committed"]
        db.engine.dispose()


def test_a_cursor_of_outcomes_lives_in_a_row(engine: sa.Engine) -> None:
    first, other = SqlCursor(engine), SqlCursor(engine, "other")
    first.table.metadata.create_all(engine)
    assert first.load() == ""
    first.save("c1")
    first.save("c2")
    other.save("c9")
    assert (SqlCursor(engine).load(), other.load()) == ("c2", "c9")
    with engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE fedsvc_cursor"))
