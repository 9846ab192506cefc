"""Rows of the client's outbox in hand: relays that die, sleep or stop, and the names of their calls."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from fedsvc_client import FedsvcClient
from fedsvc_client.outbox import Outbox, Relay, Round, _relay
from fedsvc_client.outbox._claims import Claims
from grpc import StatusCode
from servers.outbox import ADA, activity, arrived, change, inbox, rows, write
from servers.scripted import Refused, Scripted

from fedsvc.v1 import types_pb2


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
    assert list(calls[1].inboxes) == [inbox(1), inbox(3)]


def test_what_was_in_hand_long_ago_is_looked_up_also_where_it_could_go_with_others(
    engine: sa.Engine, outbox: Outbox, client: FedsvcClient, script: Scripted
) -> None:
    for number in range(4):
        write(engine, outbox, number, host=number)
    with engine.begin() as connection:
        some = outbox.table.c.id.in_([row.id for row in rows(engine, outbox)[1:3]])
        connection.execute(outbox.table.update().where(some).values(called_ms=1))
    for number in (1, 2):
        script.known.append(types_pb2.Delivery(activity_id=activity(number)["id"], inbox=inbox(number)))
    assert Relay(engine, client, outbox).run(until_empty=True).sent == 4
    assert arrived(script) == ["0", "3"], "the server has had the others"


def test_what_the_server_has_not_heard_of_is_called_again_under_its_own_name(
    engine: sa.Engine, outbox: Outbox, client: FedsvcClient, script: Scripted
) -> None:
    name = write(engine, outbox, "one")
    change(engine, outbox, called_ms=1)
    assert Relay(engine, client, outbox).run_once().sent == 1
    assert [c.request_id for c in script.calls if c.DESCRIPTOR.name != "ListDeliveriesRequest"] == [name]


def test_what_a_broken_call_left_is_called_under_a_name_of_its_own(
    engine: sa.Engine, outbox: Outbox, client: FedsvcClient, script: Scripted
) -> None:
    """The server would take fewer inboxes under a name that it knows for another call, and the relay would
    believe that they were accepted."""

    def judge(request: Any) -> None:
        raise Refused(StatusCode.RESOURCE_EXHAUSTED, "not now", reason="RATE_LIMITED")

    script.judge = judge
    with engine.begin() as connection:
        outbox.fan_out(connection, activity(1), map(inbox, range(4)), key_id=ADA, request_id="f" * 128)
    for known in (0, 0, 1):
        script.known.append(types_pb2.Delivery(activity_id=activity(1)["id"], inbox=inbox(known)))
        change(engine, outbox, called_ms=1, due_ms=0)
        Relay(engine, client, outbox).run_once()
    calls = [call for call in script.calls if call.DESCRIPTOR.name == "FanOutActivityRequest"]
    assert [len(call.inboxes) for call in calls] == [3, 3, 2]
    first, again, fewer = (call.request_id for call in calls)
    assert first == again != fewer
    assert len(first) <= 128, "a longer one is refused"


def test_a_name_that_the_server_has_heard_for_another_call_counts_as_sent(
    engine: sa.Engine, outbox: Outbox, client: FedsvcClient, script: Scripted
) -> None:
    def judge(request: Any) -> None:
        raise Refused(StatusCode.ALREADY_EXISTS, "it belongs to another call", reason="REQUEST_ID_REUSED")

    script.judge = judge
    for number in range(3):
        write(engine, outbox, number, host=number)
    assert Relay(engine, client, outbox).run_once().sent == 3


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


def test_no_call_is_begun_that_might_end_after_the_lease_and_the_rest_is_given_back(
    engine: sa.Engine, outbox: Outbox, client: FedsvcClient, script: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0

    def takes_a_second(request: Any) -> None:
        nonlocal now
        now += 1

    script.judge = takes_a_second
    monkeypatch.setattr(_relay, "time", SimpleNamespace(monotonic=lambda: now))
    for number in range(10):  # to one host: a call for each
        write(engine, outbox, number)
    relay = Relay(engine, client, outbox, lease=client.timeout + 3)
    done = [relay.run_once() for _ in range(3)]
    assert done == [
        Round(claimed=10, sent=4, later=6), Round(claimed=6, sent=4, later=2), Round(claimed=2, sent=2),
    ]  # fmt: skip
    assert arrived(script) == [str(number) for number in range(10)]


def test_a_relay_that_is_stopped_gives_back_what_it_has_not_sent(
    engine: sa.Engine, outbox: Outbox, client: FedsvcClient, script: Scripted
) -> None:
    relay = Relay(engine, client, outbox)
    script.judge = lambda request: relay.stop()
    for number in range(5):
        write(engine, outbox, number)
    assert relay.run() == Round(claimed=5, sent=1, later=4)
    script.judge = lambda request: None
    assert Relay(engine, client, outbox).run_once() == Round(claimed=4, sent=4)
