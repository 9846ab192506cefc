"""The consumer of outcomes: at least once across crashes, and PieFed's reactions to what it is told."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fedsvc_client import (
    Delivery,
    DeliveryState,
    EventType,
    FedsvcClient,
    InvalidRequest,
    OutcomeEvent,
    Priority,
    Unavailable,
    outcomes,
)
from fedsvc_client.outcomes import CallableCursor, FileCursor, OutcomeConsumer
from fedsvc_client.pyfedi import Reactions, watch
from servers.interrupts import IN_AN_EVENT, Moment, ends_though_interrupted
from servers.scripted import Scripted, scripted

from fedsvc.v1 import delivery_service_pb2 as pb
from fedsvc.v1 import operations_service_pb2 as operations_pb
from fedsvc.v1 import types_pb2


def dead(number: int, answer: str = "", status: int = 404, host: str = "lemmy.example") -> Any:
    delivery = types_pb2.Delivery(
        delivery_id=f"1-{number}", state=types_pb2.DELIVERY_STATE_DEAD, actor="https://me.example/c/cats",
        http_status=status, response_snippet=answer, host=host,
    )  # fmt: skip
    return pb.WatchOutcomesResponse(event_type=pb.EVENT_TYPE_OUTCOME, delivery=delivery, host=host)


def consumer(
    script: Scripted, handle: Callable[[OutcomeEvent], None], cursor: Any, **more: Any
) -> OutcomeConsumer:
    return OutcomeConsumer(
        FedsvcClient(script.target, timeout=2), handle, cursor, retry_after=0.0, **{"attempts": 1, **more}
    )


class Taker:
    """Handles until it has seen so many, then stops its consumer; raises at one of them."""

    def __init__(self, enough: int, fails_at: str = "") -> None:
        self.enough, self.fails_at = enough, fails_at
        self.seen: list[str] = []
        self.consumer: OutcomeConsumer | None = None

    def __call__(self, event: OutcomeEvent) -> None:
        assert event.delivery is not None
        if event.delivery.delivery_id == self.fails_at:
            raise LookupError(self.fails_at)
        self.seen.append(event.delivery.delivery_id)
        if len(self.seen) >= self.enough and self.consumer is not None:
            self.consumer.stop()


def take(script: Scripted, taker: Taker, cursor: Any, **more: Any) -> list[str]:
    taker.consumer = consumer(script, taker, cursor, **more)
    taker.consumer.run()
    return taker.seen


def test_it_goes_on_where_it_was_and_what_was_not_handled_comes_again(
    script: Scripted, tmp_path: Path
) -> None:
    script.events = [dead(n) for n in range(9)]
    cursor = FileCursor(tmp_path / "cursor")
    assert cursor.load() == ""
    assert take(script, Taker(3), cursor) == ["1-0", "1-1", "1-2"]
    failing = Taker(99, fails_at="1-5")
    with pytest.raises(LookupError):
        take(script, failing, FileCursor(tmp_path / "cursor"))
    assert failing.seen == ["1-3", "1-4"]
    assert take(script, Taker(4), FileCursor(tmp_path / "cursor")) == ["1-5", "1-6", "1-7", "1-8"]
    assert [path.name for path in tmp_path.iterdir()] == ["cursor"]


def test_saved_less_often_more_is_told_again_and_nothing_is_left_out(script: Scripted) -> None:
    script.events = [dead(n) for n in range(8)]
    kept: list[str] = []
    store = CallableCursor(lambda: kept[-1] if kept else None, kept.append)

    class Crash(BaseException):
        """As a kill would: nothing gets the chance to save."""

    crashed: list[str] = []

    def crash(event: OutcomeEvent) -> None:
        assert event.delivery is not None
        crashed.append(event.delivery.delivery_id)
        if len(crashed) == 5:
            store.save = lambda cursor: None  # type: ignore[method-assign]
            raise Crash

    with pytest.raises(Crash):
        consumer(script, crash, store, save_every=3).run()
    del store.save
    assert kept == ["0", "3"] or kept == ["3"]
    assert take(script, Taker(5), store, save_every=3) == [f"1-{n}" for n in range(3, 8)]


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_a_file_that_can_hold_no_cursor_is_named_before_anything_is_told(
    script: Scripted, tmp_path: Path
) -> None:
    script.events = [dead(1)]
    taker = Taker(1)
    with pytest.raises(FileNotFoundError, match="nowhere/cursor"):
        take(script, taker, FileCursor(tmp_path / "nowhere" / "cursor"))
    bad = tmp_path / "bad"
    bad.write_bytes(b"\xff")
    with pytest.raises(InvalidRequest, match=f"{bad} holds no cursor"):
        take(script, taker, FileCursor(bad))
    assert not taker.seen


def test_a_cursor_is_on_the_disk_before_it_takes_the_place_of_the_older_and_its_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, synced, fsync = tmp_path / "cursor", list[tuple[str, str]](), os.fsync

    def watched(fd: int) -> None:
        name = Path(f"/proc/self/fd/{fd}").readlink().name
        synced.append((name, path.read_text() if path.exists() else ""))
        if name == "cursor.new":
            assert (tmp_path / name).read_text(), "written out"
        fsync(fd)

    monkeypatch.setattr(os, "fsync", watched)
    cursor = FileCursor(path)
    cursor.save("one")
    opened = open_files()
    cursor.save("two")
    assert cursor.load() == "two"
    assert synced[2:] == [("cursor.new", "one\n"), (tmp_path.name, "two\n")]
    assert open_files() == opened


def test_an_application_that_has_saved_nothing_yet_may_say_none(script: Scripted) -> None:
    assert CallableCursor(lambda: None, lambda _: None).load() == ""


@pytest.mark.parametrize("bad", [{"save_every": 0}, {"attempts": 0}])
def test_numbers_that_would_save_or_handle_nothing_are_refused(script: Scripted, bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        consumer(script, Taker(1), CallableCursor(lambda: "", lambda _: None), **bad)


def test_pauses_grow_while_a_server_stays_away_and_are_short_again_once_it_told_something(
    script: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    #: how many events are told before the server is away again
    told = iter([0, 0, 0, 1, 0, 0, 0, 0, 0, 0])
    one = consumer(script, lambda _: None, CallableCursor(lambda: "", lambda _: None))

    def watch_outcomes(cursor: str, **_: Any) -> Iterator[OutcomeEvent]:
        for _number in range(next(told)):
            yield OutcomeEvent(type=EventType.HEARTBEAT, cursor=f"{cursor}x")
        raise Unavailable("away")

    def wait(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 10:
            one.stop()

    monkeypatch.setattr(one._client, "watch_outcomes", watch_outcomes)
    monkeypatch.setattr(one._stopped, "wait", wait)
    one.run()
    assert pauses == [2, 4, 8, 1, 2, 4, 8, 16, 30, 30]


def test_a_server_that_restarts_is_waited_for(script: Scripted) -> None:
    script.events = [dead(n) for n in range(6)]
    script.breaks_after = 2
    kept: list[str] = []
    assert take(script, Taker(6), CallableCursor(lambda: "", kept.append)) == [f"1-{n}" for n in range(6)]
    assert len(script.calls) >= 3
    assert kept[-1] == "6"


def test_what_fails_once_is_tried_again_before_it_is_given_up(script: Scripted) -> None:
    script.events = [dead(0), dead(1)]
    tries: list[str] = []
    taker = Taker(2)

    def flaky(event: OutcomeEvent) -> None:
        assert event.delivery is not None
        tries.append(event.delivery.delivery_id)
        if len(tries) == 1:
            raise OSError("the database is away")
        taker(event)

    taker.consumer = consumer(script, flaky, CallableCursor(lambda: "", lambda cursor: None), attempts=2)
    taker.consumer.run()
    assert tries == ["1-0", "1-0", "1-1"]


def test_it_stops_at_once_though_it_waits_to_handle_something_again(
    script: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    script.events = [dead(0)]
    saved: list[str] = []

    def fails(event: OutcomeEvent) -> None:
        raise OSError("the database is away")

    waiting = OutcomeConsumer(
        FedsvcClient(script.target, timeout=2), fails, CallableCursor(lambda: "", saved.append),
        attempts=2, retry_after=3600.0,
    )  # fmt: skip
    monkeypatch.setattr(outcomes.log, "warning", lambda *_: waiting.stop())  # told just before it waits
    waiting.run()
    assert "1" not in saved, "what was not handled comes again"


def test_it_stops_at_once_though_nothing_happens(script: Scripted) -> None:
    begun = threading.Event()
    idle = consumer(script, lambda event: None, CallableCursor(lambda: "", lambda cursor: begun.set()))
    running = threading.Thread(target=idle.run)
    running.start()
    assert begun.wait(20), "the first sign of life gives a cursor, which is saved"
    idle.stop()
    running.join(5)
    assert not running.is_alive()


@pytest.mark.parametrize(
    "moment",
    [
        ("_MultiThreadedRendezvous._next", "Condition.__exit__"),  # gRPC's lock of the stream is held
        ("_MultiThreadedRendezvous._next", "_event_handler"),
    ],
)
def test_a_signal_handler_may_stop_it_whatever_it_is_doing(script: Scripted, moment: Moment) -> None:
    script.events = [dead(n) for n in range(9)]
    watching = consumer(script, lambda event: None, CallableCursor(lambda: "0", lambda cursor: None))
    assert ends_though_interrupted(watching.run, watching.stop, moment)


def test_a_signal_handler_may_stop_it_while_it_waits_for_the_server() -> None:
    watching = OutcomeConsumer(
        FedsvcClient("127.0.0.1:1", timeout=0.1), lambda event: None, CallableCursor(str, lambda cursor: None)
    )
    waits = ("OutcomeConsumer.run", "Bell.wait")
    assert ends_though_interrupted(watching.run, watching.stop, IN_AN_EVENT, waits)


def test_a_cursor_that_the_server_does_not_take_is_told(script: Scripted) -> None:
    def refuse(self: Any, request: Any, context: Any) -> Any:
        from grpc import StatusCode

        context.abort(StatusCode.INVALID_ARGUMENT, "cursor: is not one of this queue")

    script.WatchOutcomes = refuse.__get__(script)  # type: ignore[method-assign]
    with scripted(script), pytest.raises(InvalidRequest, match="not one of this queue"):
        consumer(script, lambda event: None, CallableCursor(lambda: "old", lambda cursor: None)).run()


BANNED = '{"error":"person_is_banned_from_site","message":"https://me.example/u/eve"}'
WHO = {"error": "person_is_banned_from_site", "message": "https://me.example/u/eve"}


def test_piefed_is_told_what_it_acts_on_today(script: Scripted) -> None:
    def event(kind: Any, host: str, inbox: str = "") -> Any:
        return pb.WatchOutcomesResponse(event_type=kind, host=host, inbox=inbox)

    script.hosts = {
        "gone.example": operations_pb.Host(host="gone.example", state=operations_pb.HOST_STATE_GONE),
        "down.example": operations_pb.Host(host="down.example", state=operations_pb.HOST_STATE_OPEN),
    }
    script.events = [
        event(pb.EVENT_TYPE_HOST_DOWN, "Down.example"),
        event(pb.EVENT_TYPE_HOST_DOWN, "gone.example"),
        event(pb.EVENT_TYPE_HOST_DOWN, "forgotten.example"),
        event(pb.EVENT_TYPE_HOST_UP, "down.example"),
        event(pb.EVENT_TYPE_INBOX_GONE, "a.example", "https://a.example/u/x/inbox"),
        dead(0, BANNED, 400),
        dead(1, BANNED, 403),
        dead(2, '{"error":"person_is_banned_from_site"}', 400),
        dead(3, "person_is_banned_from_site" + "[" * 1000, 400),
        dead(4, '{"error":"community_has_no_followers"}', 400),
        dead(5, "<!doctype HTML> community_has_no_followers person_is_banned_from_site", 400),
        dead(7, f"{BANNED} (the activity has 70000 bytes, and some servers take 65536 at most)", 400),
        dead(6, "not here"),
    ]
    told: list[tuple[Any, ...]] = []

    def tell(name: str) -> Callable[..., None]:
        def callback(*what: Any) -> None:
            told.append((name, *(w.delivery_id if isinstance(w, Delivery) else w for w in what)))
            if told[-1] == ("failed", "1-6"):
                watching.stop()

        return callback

    reactions = Reactions(
        **{name: tell(name) for name in Reactions.__dataclass_fields__ if name != "delivered"}
    )
    store = CallableCursor(lambda: "", lambda cursor: None)
    watching = watch(reactions, store, client=FedsvcClient(script.target))
    watching.run()
    asked = script.calls[0]
    assert list(asked.states) == [types_pb2.DELIVERY_STATE_DEAD], "what arrives is not even sent to us"
    assert told == [
        ("instance_dormant", "down.example"),
        ("instance_gone_forever", "gone.example"),
        ("instance_dormant", "forgotten.example"),
        ("instance_back", "down.example"),
        ("inbox_gone", "https://a.example/u/x/inbox", "a.example"),
        ("person_banned", WHO, "lemmy.example"),
        ("failed", "1-0"), ("failed", "1-1"), ("failed", "1-2"), ("failed", "1-3"),
        ("community_without_followers", "https://me.example/c/cats", "lemmy.example"),
        ("failed", "1-4"), ("failed", "1-5"),
        ("person_banned", WHO, "lemmy.example"),
        ("failed", "1-7"), ("failed", "1-6"),
    ]  # fmt: skip


def test_who_wants_to_know_what_arrives_is_told_by_the_server_that_is_configured(
    script: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDSVC_TARGET", script.target)
    arrived = types_pb2.Delivery(delivery_id="1-1", state=types_pb2.DELIVERY_STATE_DELIVERED)
    script.events = [pb.WatchOutcomesResponse(event_type=pb.EVENT_TYPE_OUTCOME, delivery=arrived)]
    told: list[str] = []

    def take(delivery: Delivery) -> None:
        told.append(delivery.delivery_id)
        watching.stop()

    watching = watch(Reactions(delivered=take), CallableCursor(lambda: "", lambda cursor: None))
    watching.run()
    assert told == ["1-1"]
    asked = script.calls[0]
    assert list(asked.states) == [types_pb2.DELIVERY_STATE_DEAD, types_pb2.DELIVERY_STATE_DELIVERED]
    assert list(asked.event_types) == [
        pb.EVENT_TYPE_OUTCOME,
        pb.EVENT_TYPE_HOST_DOWN,
        pb.EVENT_TYPE_HOST_UP,
        pb.EVENT_TYPE_INBOX_GONE,
    ]


def test_without_callbacks_nothing_is_asked_and_nothing_fails(script: Scripted) -> None:
    from fedsvc_client.pyfedi import react

    client = FedsvcClient(script.target)
    for kind in EventType:
        react(Reactions(), OutcomeEvent("c", kind, host="a.example"), client)
    delivery = Delivery(
        "1-1", DeliveryState.DELIVERED, "", "", "", "", "", "", "", Priority.BULK, 1, "", 200, "", None, None,
        None, None, None, (), "", "",
    )  # fmt: skip
    arrived: list[Delivery] = []
    react(Reactions(delivered=arrived.append), OutcomeEvent("c", EventType.OUTCOME, None, delivery), client)
    assert arrived == [delivery]
    client.close()
