"""The client's outbox: what is committed is handed over once and in order, whatever the server and other
relays do."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import flask
import flask_sqlalchemy
import pytest
import sqlalchemy as sa
from fedsvc_client import FedsvcClient, InvalidRequest, PermissionDenied, Unavailable
from fedsvc_client.outbox import Outbox, Relay, Round, SqlCursor
from fedsvc_client.outbox._claims import Claims
from grpc import StatusCode
from servers.postgres import postgres_server
from servers.scripted import Refused, Scripted, scripted
from sqlalchemy.orm import Session

from fedsvc.v1 import types_pb2

ADA, BOB = "https://me.example/u/ada#main-key", "https://me.example/u/bob#main-key"


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    with postgres_server() as server:
        yield server.url.replace("postgresql:", "postgresql+psycopg:")


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sa.Engine]:
    if request.param == "sqlite":
        engine = sa.create_engine(f"sqlite:///{tmp_path}/app.db", connect_args={"timeout": 30})
        # What is tested here needs no disk.
        sa.event.listen(engine, "connect", lambda dbapi, _: dbapi.execute("PRAGMA synchronous=OFF"))
    else:
        engine = sa.create_engine(request.getfixturevalue("postgres"))
    yield engine
    with engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE IF EXISTS fedsvc_outbox"))
    engine.dispose()


@pytest.fixture
def outbox(engine: sa.Engine) -> Outbox:
    outbox = Outbox()
    outbox.table.metadata.create_all(engine)
    return outbox


@pytest.fixture
def script() -> Iterator[Scripted]:
    with scripted() as script:
        yield script


@pytest.fixture
def client(script: Scripted) -> Iterator[FedsvcClient]:
    with FedsvcClient(script.target, timeout=2) as client:
        yield client


def activity(name: Any) -> dict[str, str]:
    return {
        "id": f"https://me.example/{name}",
        "type": "Like",
        "actor": "https://me.example/u/ada",
        "object": "o",
    }


def inbox(number: int) -> str:
    return f"https://h{number}.example/inbox"


def write(engine: sa.Engine, outbox: Outbox, name: Any, host: int = 0, key_id: str = ADA, **more: Any) -> str:
    with engine.begin() as connection:
        return outbox.queue_activity(connection, activity(name), inbox(host), key_id=key_id, **more)


def change(engine: sa.Engine, outbox: Outbox, **values: Any) -> None:
    """Of all rows: how tests move the clock."""
    with engine.begin() as connection:
        connection.execute(outbox.table.update().values(**values))


def rows(engine: sa.Engine, outbox: Outbox) -> list[Any]:
    with engine.begin() as connection:
        return list(connection.execute(sa.select(outbox.table).order_by(outbox.table.c.id)))


def arrived(script: Scripted) -> list[str]:
    """Names of activities in the order in which they came, again and again."""
    found = []
    for call in script.calls:
        for item in getattr(call, "requests", None) or [call]:
            if item.DESCRIPTOR.name != "ListDeliveriesRequest":
                found.append(json.loads(item.activity)["id"].rsplit("/", 1)[1])
    return found


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
            {"key_id": ""},
            {"priority": "soon"},
            {"not_before": datetime(2026, 1, 1)},  # noqa: DTZ001
        )
        for bad in bads:
            given: dict[str, Any] = {"activity": activity(1), "destinations": [inbox(0)], "key_id": ADA} | bad
            sent, to = given.pop("activity"), given.pop("destinations")
            with pytest.raises(InvalidRequest):
                outbox.fan_out(connection, sent, to, **given)
    assert rows(engine, outbox) == []


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


def test_a_poisonous_row_is_put_aside_with_the_reason_and_blocks_nothing(
    engine: sa.Engine, outbox: Outbox, client: FedsvcClient, script: Scripted
) -> None:
    def judge(request: Any) -> None:
        if b"/poison" in request.activity:
            raise Refused(
                StatusCode.INVALID_ARGUMENT, "has no id", reason="INVALID_ACTIVITY", field="activity"
            )

    script.judge = judge
    for name in ("first", "poison", "second"):
        write(engine, outbox, name)
    unreadable = write(engine, outbox, "unreadable")
    with engine.begin() as connection:
        of_it = outbox.table.c.request_id == unreadable
        connection.execute(outbox.table.update().where(of_it).values(options="{"))
    write(engine, outbox, "third")
    relay = Relay(engine, client, outbox)
    assert relay.run(until_empty=True) == Round(claimed=5, sent=3, put_aside=2)
    assert [n for n in arrived(script) if n != "poison"] == ["first", "second", "third"]
    with engine.begin() as connection:
        aside = outbox.put_aside(connection)
        assert [(a.inboxes, a.attempts) for a in aside] == [((inbox(0),), 1), ((inbox(0),), 1)]
        assert "has no id" in aside[0].reason
        assert "cannot be read" in aside[1].reason
        assert (outbox.status(connection).waiting, outbox.status(connection).put_aside) == (0, 2)
    script.judge = lambda request: None
    with engine.begin() as connection:
        assert outbox.retry(connection, [aside[0].id]) == 1
    assert relay.run(until_empty=True).sent == 1
    assert arrived(script)[-1] == "poison"


def test_overload_holds_up_a_lane_only_and_uses_up_no_attempts(
    engine: sa.Engine, outbox: Outbox, client: FedsvcClient, script: Scripted
) -> None:
    def judge(request: Any) -> None:
        if request.signing_key.key_id == ADA:
            raise Refused(StatusCode.RESOURCE_EXHAUSTED, "enough for now", reason="ORIGIN_BACKLOG")

    script.judge = judge
    for number in range(3):
        write(engine, outbox, f"a{number}")
        write(engine, outbox, f"b{number}", key_id=BOB)
    relay = Relay(engine, client, outbox, max_attempts=2)
    for _ in range(5):
        relay.run(until_empty=True)
        change(engine, outbox, due_ms=0)
    assert [n for n in arrived(script) if n[0] == "b"] == ["b0", "b1", "b2"]
    assert "a1" not in arrived(script)
    left = rows(engine, outbox)
    assert [(row.attempts, row.state) for row in left] == [(0, 0)] * 3
    assert "enough for now" in left[0].reason
    script.judge = lambda request: None
    relay.run(until_empty=True)
    assert list(dict.fromkeys(n for n in arrived(script) if n[0] == "a")) == ["a0", "a1", "a2"]


def test_what_fails_again_and_again_is_put_aside_after_a_while(
    engine: sa.Engine, outbox: Outbox, client: FedsvcClient, script: Scripted
) -> None:
    def judge(request: Any) -> None:
        if b"/bad" in request.activity:
            raise Refused(StatusCode.FAILED_PRECONDITION, "a handler is broken", reason="HANDLER_FAILED")

    script.judge = judge
    write(engine, outbox, "bad")
    write(engine, outbox, "good")
    relay = Relay(engine, client, outbox, max_attempts=3)
    waits = []
    for attempt in (1, 2):
        before = rows(engine, outbox)[0].due_ms
        assert relay.run_once().later >= 1
        row = rows(engine, outbox)[0]
        assert row.attempts == attempt
        waits.append(row.due_ms - max(before, row.called_ms))
        assert relay.run_once() == Round(), "not before it is due, and nothing of its lane"
        change(engine, outbox, due_ms=row.called_ms)
    assert 900 < waits[0] < waits[1], "longer each time"
    assert relay.run_once() == Round(claimed=2, sent=1, put_aside=1)
    assert relay.run_once() == Round()
    (row,) = rows(engine, outbox)
    assert (row.state, row.reason) == (1, "HANDLER_FAILED: a handler is broken")
    change(engine, outbox, aside_ms=0)
    Relay(engine, client, outbox).run_once()
    assert rows(engine, outbox) == [], "what was put aside long ago is deleted"


@pytest.mark.parametrize(
    ("code", "reason", "raised"),
    [
        (StatusCode.UNAVAILABLE, "", Unavailable),
        (StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED", PermissionDenied),
    ],
)
def test_a_server_that_takes_nothing_costs_no_row_an_attempt(
    engine: sa.Engine,
    outbox: Outbox,
    script: Scripted,
    code: StatusCode,
    reason: str,
    raised: type[Exception],
) -> None:
    def judge(request: Any) -> None:
        raise Refused(code, "not now", reason=reason)

    script.judge = judge
    write(engine, outbox, "one")
    with FedsvcClient(script.target, timeout=0.2) as client:
        relay = Relay(engine, client, outbox)
        for _ in range(3):
            with pytest.raises(raised):
                relay.run_once()
        (row,) = rows(engine, outbox)
        assert (row.attempts, row.state, row.lease_until_ms) == (0, 0, 0)
        script.judge = lambda request: None
        assert relay.run_once() == Round(claimed=1, sent=1)


def test_rows_of_a_relay_that_died_are_called_again_under_the_same_names(
    engine: sa.Engine, outbox: Outbox, client: FedsvcClient, script: Scripted
) -> None:
    names = [write(engine, outbox, number) for number in range(3)]
    died = Claims(engine, outbox.table, 60_000)
    taken = died.take(10, 10)
    client.queue_activity(bytes(taken[0].activity), inbox(0), key_id=ADA, request_id=taken[0].request_id)
    relay = Relay(engine, client, outbox)
    assert relay.run_once() == Round(), "it may live"
    change(engine, outbox, lease_until_ms=1)
    assert relay.run(until_empty=True).sent == 3
    assert [call.request_id for call in script.calls] == [names[0], *names]
    assert len(script.accepted) == 3
    died.sent(taken[0].lease_owner, [row.id for row in taken])


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


def test_what_was_in_hand_long_ago_is_looked_up_before_it_is_sent(
    engine: sa.Engine, outbox: Outbox, client: FedsvcClient, script: Scripted
) -> None:
    for name in ("known", "unknown"):
        write(engine, outbox, name, host=1)
    with engine.begin() as connection:
        outbox.fan_out(connection, activity("half"), map(inbox, range(4)), key_id=ADA, request_id="fan")
    change(engine, outbox, called_ms=1)
    for name, host in (("known", "H1"), ("half", "h0"), ("half", "h2")):
        script.known.append(
            types_pb2.Delivery(activity_id=activity(name)["id"], inbox=f"https://{host}.example:443/inbox")
        )
    assert Relay(engine, client, outbox).run(until_empty=True).sent == 3
    calls = [call for call in script.calls if call.DESCRIPTOR.name != "ListDeliveriesRequest"]
    assert arrived(script) == ["unknown", "half"]
    assert (list(calls[1].inboxes), calls[1].request_id) == ([inbox(1), inbox(3)], "fan.rest")


def test_a_name_that_the_server_has_heard_for_another_call_counts_as_sent(
    engine: sa.Engine, outbox: Outbox, client: FedsvcClient, script: Scripted
) -> None:
    def judge(request: Any) -> None:
        raise Refused(StatusCode.ALREADY_EXISTS, "it belongs to another call", reason="REQUEST_ID_REUSED")

    script.judge = judge
    for number in range(3):
        write(engine, outbox, number, host=number)
    assert Relay(engine, client, outbox).run_once().sent == 3


def test_a_function_that_fails_to_find_a_key_shows_none(
    engine: sa.Engine, outbox: Outbox, client: FedsvcClient
) -> None:
    def keys(key_id: str) -> str:
        raise LookupError("SECRET PEM")

    write(engine, outbox, "one")
    assert Relay(engine, client, outbox, keys=keys).run_once().later == 1
    assert rows(engine, outbox)[0].reason == "finding the key failed: LookupError"


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


@pytest.mark.parametrize(
    "values",
    [{"options": '{"of_a_newer_version": true}'}, {"options": "[]"}, {"inboxes": "null"}, {"inboxes": "?"}],
)
def test_a_row_that_cannot_be_read_does_not_end_the_relay(
    engine: sa.Engine, outbox: Outbox, client: FedsvcClient, script: Scripted, values: dict[str, str]
) -> None:
    write(engine, outbox, "odd")
    change(engine, outbox, **values)
    write(engine, outbox, "next", host=1, key_id=BOB)
    assert Relay(engine, client, outbox).run(until_empty=True) == Round(claimed=2, sent=1, put_aside=1)
    assert arrived(script) == ["next"]


def test_a_row_that_is_too_large_for_the_server_is_put_aside_in_the_end(
    engine: sa.Engine, outbox: Outbox, client: FedsvcClient, script: Scripted
) -> None:
    with engine.begin() as connection:
        large = activity("large") | {"content": "x" * 5 * 1024 * 1024}
        outbox.queue_activity(connection, large, inbox(0), key_id=ADA)
    write(engine, outbox, "next")
    relay = Relay(engine, client, outbox, max_attempts=2)
    for _ in range(3):
        relay.run_once()
        change(engine, outbox, due_ms=0)
    assert arrived(script) == ["next"]
    assert [row.reason[:17] for row in rows(engine, outbox)] == ["MESSAGE_TOO_LARGE"]


def test_a_relay_that_slept_past_its_lease_touches_nothing_of_others(
    engine: sa.Engine, outbox: Outbox, client: FedsvcClient, script: Scripted
) -> None:
    write(engine, outbox, "first")
    slow, other = (Relay(engine, client, outbox, lease=2.1) for _ in range(2))

    def slept(_: Any) -> None:
        script.judge = lambda _: None
        change(engine, outbox, lease_until_ms=0)
        assert other.run_once() == Round(claimed=1, sent=1)
        write(engine, outbox, "second")  # on SQLite it has the id that the first had

    script.judge = slept
    slow.run_once()
    assert [row.request_id for row in rows(engine, outbox)], "what was never sent is still there"
    slow.run(until_empty=True)
    assert arrived(script)[-1] == "second"


def test_a_client_that_was_closed_is_no_fault_of_a_row(
    engine: sa.Engine, outbox: Outbox, script: Scripted
) -> None:
    write(engine, outbox, "waits")
    closed = FedsvcClient(script.target, timeout=2)
    closed.close()
    with pytest.raises(Unavailable, match="closed"):
        Relay(engine, closed, outbox).run_once()
    assert [row.state for row in rows(engine, outbox)] == [0]
