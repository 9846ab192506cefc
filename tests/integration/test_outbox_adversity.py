"""The client's outbox on bad days: servers that refuse or are away, and rows that nobody can read or take."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from fedsvc_client import TLS, ClientClosed, ConfigurationError, FedsvcClient, PermissionDenied, Unavailable
from fedsvc_client.outbox import Outbox, Relay, Round
from grpc import StatusCode
from servers.outbox import ADA, BOB, activity, arrived, change, inbox, rows, write
from servers.scripted import Refused, Scripted


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


def test_the_reason_names_the_field_also_of_a_row_that_was_sent_with_others(
    engine: sa.Engine, outbox: Outbox, client: FedsvcClient, script: Scripted
) -> None:
    def judge(request: Any) -> None:
        if b"/poison" in request.activity:
            what = "has control characters"
            raise Refused(
                StatusCode.INVALID_ARGUMENT, what, reason="INVALID_ARGUMENT", field="options.ordering_key"
            )

    script.judge = judge
    write(engine, outbox, "poison")
    write(engine, outbox, "other", host=1, key_id=f"{inbox(1)}#key")
    assert Relay(engine, client, outbox).run(until_empty=True) == Round(claimed=2, sent=1, put_aside=1)
    assert [type(call).__name__ for call in script.calls] == ["QueueActivitiesRequest"]
    with engine.begin() as connection:
        (aside,) = outbox.put_aside(connection)
    assert aside.reason == "INVALID_ARGUMENT: options.ordering_key: has control characters"


def test_what_was_put_aside_stays_for_its_time_and_is_deleted_after_it(
    engine: sa.Engine, outbox: Outbox, client: FedsvcClient, script: Scripted
) -> None:
    def judge(request: Any) -> None:
        raise Refused(StatusCode.INVALID_ARGUMENT, "has no id", reason="INVALID_ACTIVITY", field="activity")

    script.judge = judge
    write(engine, outbox, "poison")
    kept = timedelta(days=2)
    assert Relay(engine, client, outbox, keep_aside=kept).run_once().put_aside == 1
    (row,) = rows(engine, outbox)
    for days, there in ((1.99, 1), (2.01, 0)):
        change(engine, outbox, aside_ms=row.aside_ms - int(days * 86_400_000))
        relay = Relay(engine, client, outbox, keep_aside=kept)
        relay.run_once()
        assert len(rows(engine, outbox)) == there
    write(engine, outbox, "another")
    assert relay.run_once().put_aside == 1
    change(engine, outbox, aside_ms=0)
    relay.run_once()
    assert len(rows(engine, outbox)) == 1, "it looks once an hour"


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


def test_no_call_has_more_rows_than_the_server_takes(
    engine: sa.Engine, outbox: Outbox, client: FedsvcClient, script: Scripted
) -> None:
    for number in range(7):
        write(engine, outbox, number, host=number)
    assert Relay(engine, client, outbox, batch=3).run_once().sent == 7
    assert [len(getattr(call, "requests", [call])) for call in script.calls] == [3, 3, 1]


def test_a_fan_out_behind_others_of_its_lane_goes_by_itself_to_all_its_inboxes(
    engine: sa.Engine, outbox: Outbox, client: FedsvcClient, script: Scripted
) -> None:
    write(engine, outbox, "one", host=8)
    write(engine, outbox, "two", host=9)
    with engine.begin() as connection:
        outbox.fan_out(connection, activity("all"), map(inbox, range(3)), key_id=ADA)
    write(engine, outbox, "bobs", host=7, key_id=BOB)
    assert Relay(engine, client, outbox).run_once() == Round(claimed=4, sent=4)
    (fan_out,) = [call for call in script.calls if call.DESCRIPTOR.name == "FanOutActivityRequest"]
    assert list(fan_out.inboxes) == [inbox(n) for n in range(3)]
    assert [name for name in arrived(script) if name != "bobs"] == ["one", "two", "all"]


def test_a_function_that_fails_to_find_a_key_shows_none(
    engine: sa.Engine, outbox: Outbox, client: FedsvcClient
) -> None:
    def keys(key_id: str) -> str:
        raise LookupError("SECRET PEM")

    write(engine, outbox, "one")
    assert Relay(engine, client, outbox, keys=keys).run_once().later == 1
    assert rows(engine, outbox)[0].reason == "finding the key failed: LookupError"


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


def test_a_client_that_was_closed_ends_the_relay_and_is_no_fault_of_a_row(
    engine: sa.Engine, outbox: Outbox, script: Scripted
) -> None:
    write(engine, outbox, "waits")
    closed = FedsvcClient(script.target, timeout=2)
    closed.close()
    with pytest.raises(ClientClosed):
        Relay(engine, closed, outbox).run()
    assert [(row.state, row.attempts) for row in rows(engine, outbox)] == [(0, 0)]


def test_a_client_that_is_closed_in_a_call_ends_the_relay(
    engine: sa.Engine, outbox: Outbox, script: Scripted
) -> None:
    write(engine, outbox, "waits")
    client = FedsvcClient(script.target, timeout=2)
    with pytest.raises(ClientClosed):
        Relay(engine, client, outbox, keys=lambda _: client.close()).run()
    assert [(row.state, row.attempts) for row in rows(engine, outbox)] == [(0, 0)]


def test_bad_files_of_tls_are_no_fault_of_a_row(engine: sa.Engine, outbox: Outbox, script: Scripted) -> None:
    write(engine, outbox, "waits")
    client = FedsvcClient(script.target, timeout=2, tls=TLS(ca_file="/nonexistent"))
    with pytest.raises(ConfigurationError, match="/nonexistent"):
        Relay(engine, client, outbox).run()
    assert [(row.state, row.attempts) for row in rows(engine, outbox)] == [(0, 0)]
