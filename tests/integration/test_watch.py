"""WatchOutcomes: what happened is told once at least, from wherever a watcher was, also out of SQL."""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import AsyncIterator
from contextlib import aclosing
from itertools import islice, pairwise
from pathlib import Path

import grpc
import pytest
from fedsvc_client import AsyncFedsvcClient, FedsvcClient, InvalidRequest, OutcomeEvent, ResourceExhausted
from fedsvc_client import EventType as Told
from hypothesis import HealthCheck, given
from hypothesis import settings as given_settings
from hypothesis import strategies as st
from servers.front import front
from servers.queue import HOUR_MS, PARTITIONS, Queue, open_queue
from servers.valkey import ValkeyServer

from fedsvc.archive.archive import Archive
from fedsvc.archive.archived_log import ArchivedLog
from fedsvc.archive.engine import create_engine
from fedsvc.archive.tables import metadata
from fedsvc.config import Settings
from fedsvc.domain.delivery import Delivery, DeliveryState, Reason
from fedsvc.domain.events import EventType, HostEvent
from fedsvc.errors import InvalidInput, Overloaded, Stopping
from fedsvc.queue.consumer import Signal
from fedsvc.server.places import Places
from fedsvc.server.watch import Cursor, Filter, Seen, Watchers
from fedsvc.v1 import delivery_service_pb2 as pb
from fedsvc.worker.affinity import Affinity
from fedsvc.worker.archival_handler import ArchivalHandler
from fedsvc.worker.beats import Beats

ALL = Filter()
DAY_MS = 86_400_000
OF_ANOTHER_VERSION = base64.b64encode(struct.pack(">BH4Q", 2, 4, *[1] * 4)).decode()


class Desk:
    """A queue, its archive, and watchers of both."""

    def __init__(self, queue: Queue, archive: Archive) -> None:
        self.queue = queue
        self.stopping = asyncio.Event()
        self.handler = ArchivalHandler(
            queue.settings,
            queue.outcomes,
            archive,
            Beats("archive"),
            Affinity("a", queue.settings.partitions),
        )
        self.watchers = Watchers(
            queue.settings.partitions,
            Places(2, "watchers"),
            queue.outcomes,
            ArchivedLog(archive.engine),
            self.stopping,
            pause=0.01,
            limit=7,
        )
        self.sent: list[str] = []

    async def end(
        self, count: int, state: DeliveryState = DeliveryState.DELIVERED, signal: Signal = Signal.ANSWERED
    ) -> list[str]:
        """So many deliveries to as many hosts end. Returns their ids."""
        ids = []
        for number in range(count):
            name = f"n{len(self.sent)}"
            queued = await self.queue.enqueue(name, inbox=number)
            self.sent.append(str(queued.id))
            ids.append(str(queued.id))
        taken = await self.queue.admit_everywhere(count + 10)
        for partition in range(PARTITIONS):
            settlements = [
                await self.queue.settlement(admitted, state, Reason.UNAUTHORIZED, signal=signal)
                for admitted in taken
                if admitted.id.partition == partition
            ]
            await self.queue.consumer("a").settle(partition, settlements)
        return ids

    async def archive(self, *, forget: bool = False) -> None:
        while await self.handler.round():
            pass
        for partition in range(PARTITIONS):
            while forget and await self.queue.outcomes.trim(partition, 5, early=True):
                pass

    async def start(self) -> str:
        """A cursor of now."""
        async with aclosing(self.watchers.watch("", ALL)) as watched:
            return (await anext(watched)).cursor

    async def take(self, cursor: str, count: int, takes: Filter = ALL) -> list[Seen]:
        """The next entries, no signs of life."""
        seen: list[Seen] = []
        async with asyncio.timeout(20), aclosing(self.watchers.watch(cursor, takes)) as watched:
            async for each in watched:
                if each.entry is not None:
                    seen.append(each)
                if len(seen) == count:
                    break
        return seen


def ids(seen: list[Seen]) -> list[str]:
    return [str(each.entry.id) for each in seen if isinstance(each.entry, Delivery)]


@pytest.fixture
async def desk(valkey: ValkeyServer, namespace: str, tmp_path: Path) -> AsyncIterator[Desk]:
    engine = create_engine(Settings.from_environment({"DATABASE_URL": f"sqlite:///{tmp_path}/archive.db"}))
    try:
        async with engine.begin() as connection:
            await connection.run_sync(metadata.create_all)
        async with open_queue(valkey.url, namespace) as queue:
            yield Desk(queue, Archive(engine))
    finally:
        await engine.dispose()


async def test_it_begins_now_and_goes_on_from_a_cursor(desk: Desk) -> None:
    await desk.end(5)
    cursor = await desk.start()
    sent = await desk.end(30)
    seen = await desk.take(cursor, 30)
    assert sorted(ids(seen)) == sorted(sent), "nothing of before, and all of after"
    again = await desk.take(seen[11].cursor, 18)
    assert sorted(ids(again)) == sorted(ids(seen)[12:])


@given(stops=st.lists(st.integers(1, 20), min_size=1, max_size=12), forget=st.booleans())
@given_settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_however_often_it_is_interrupted_nothing_is_missed(
    desk: Desk, stops: list[int], forget: bool
) -> None:
    cursor = await desk.start()
    got: list[str] = []
    sent: list[str] = []
    for stop in stops:
        sent += await desk.end(stop)
        await desk.archive(forget=forget)
        some = max(1, (len(sent) - len(got)) // 2)
        seen = await desk.take(cursor, some)
        got += ids(seen)
        cursor = seen[-1].cursor
    got += ids(await desk.take(cursor, len(sent) - len(got))) if len(sent) > len(got) else []
    assert sorted(got) == sorted(sent)


async def test_what_redis_has_forgotten_comes_from_the_archive_events_too(desk: Desk) -> None:
    cursor = await desk.start()
    old = await desk.end(20, DeliveryState.DEAD, Signal.ANSWERED | Signal.INBOX_GONE)
    await desk.archive(forget=True)
    entries = [len(await desk.queue.link.call("XRANGE", desk.queue.keys.partition(p).outcomes, "-", "+"))
               for p in range(PARTITIONS)]  # fmt: skip
    assert entries == [0] * PARTITIONS
    new = await desk.end(10)
    seen = await desk.take(cursor, 50)
    assert sorted(ids(seen)) == sorted(old + new)
    events = [each.entry for each in seen if isinstance(each.entry, HostEvent)]
    assert [event.type for event in events] == [EventType.INBOX_GONE] * 20
    assert {event.detail for event in events} == {f"https://h{n}.example/inbox" for n in range(20)}
    assert sorted(ids(await desk.take(seen[35].cursor, len(seen) - 36))) == sorted(ids(seen[36:]))


async def test_filters(desk: Desk) -> None:
    cursor = await desk.start()
    await desk.end(4, DeliveryState.DEAD, Signal.ANSWERED | Signal.KEY_REJECTED)
    await desk.end(4)
    dead = await desk.take(
        cursor, 4, Filter(states=frozenset({DeliveryState.DEAD}), events=frozenset({None}))
    )
    assert {each.entry.state for each in dead if isinstance(each.entry, Delivery)} == {DeliveryState.DEAD}
    host = await desk.take(cursor, 3, Filter(hosts=frozenset({"h2.example"})))
    assert [type(each.entry).__name__ for each in host] == ["HostEvent", "Delivery", "Delivery"]
    keys = await desk.take(cursor, 4, Filter(events=frozenset({EventType.KEY_REJECTED})))
    assert {each.entry.detail for each in keys if isinstance(each.entry, HostEvent)} == {
        "https://me.example/u/a#k"
    }
    await desk.end(1)
    likes = await desk.take(cursor, 9, Filter(activity_types=frozenset({"Like"}), events=frozenset({None})))
    assert len(likes) == 9
    assert not Filter(activity_types=frozenset({"Create"})).takes(likes[0].entry or pytest.fail("none"))
    others, own = Filter(origins=frozenset({"other.example"})), Filter(origins=frozenset({"me.example"}))
    assert not others.takes(likes[0].entry or pytest.fail("none"))
    assert not others.takes(keys[0].entry or pytest.fail("none"))
    assert own.takes(keys[0].entry or pytest.fail("none"))
    assert own.takes(likes[0].entry or pytest.fail("none"))
    nobodys = HostEvent(EventType.KEY_REJECTED, 0, 1, "h2.example", "no url")
    assert not own.takes(nobodys), "of which nobody can say whose it is"
    assert ALL.takes(nobodys)
    assert not Filter(events=frozenset({EventType.HOST_DOWN})).takes(likes[0].entry or pytest.fail("none"))
    assert others.takes(HostEvent(EventType.HOST_DOWN, 0, 1, "h2.example")), "that concerns all"


async def test_a_sign_of_life_carries_the_cursor_past_what_is_of_no_interest(desk: Desk) -> None:
    cursor = await desk.start()
    await desk.end(20)
    desk.watchers.heartbeat = 0.05
    none = Filter(states=frozenset({DeliveryState.EXPIRED}))
    async with asyncio.timeout(20), aclosing(desk.watchers.watch(cursor, none)) as watched:
        async for seen in watched:
            assert seen.entry is None
            if seen.cursor != cursor:
                break
    more = await desk.end(1)
    assert ids(await desk.take(seen.cursor, 1)) == more


async def test_signs_of_life_are_no_more_than_are_asked_for(desk: Desk) -> None:
    desk.watchers.heartbeat, desk.watchers.pause = 0.05, 0.0
    loop, signs = asyncio.get_running_loop(), []
    async with asyncio.timeout(20), aclosing(desk.watchers.watch(await desk.start(), ALL)) as watched:
        async for _ in watched:
            signs.append(loop.time())
            if len(signs) == 4:
                break
    assert all(later - sign >= 0.05 for sign, later in pairwise(signs))


async def test_it_pauses_when_there_is_nothing_new_and_not_before(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    cursor = await desk.start()
    await desk.end(60)
    seen: list[Seen] = []
    pauses = []

    async def pause(watchers: Watchers, seconds: float) -> None:
        pauses.append((len(seen), seconds))
        watchers.stopping.set()

    monkeypatch.setattr(Watchers, "_wait", pause)

    async def follow() -> None:
        async with asyncio.timeout(20), aclosing(desk.watchers.watch(cursor, ALL)) as watched:
            async for each in watched:
                seen.append(each)

    with pytest.raises(Stopping):
        await follow()
    assert pauses == [(60, desk.watchers.pause)]


async def test_what_nobody_can_read_hides_nothing_behind_it(desk: Desk) -> None:
    cursor = await desk.start()
    for partition in range(PARTITIONS):
        outcomes = desk.queue.keys.partition(partition).outcomes
        number = await desk.queue.outcomes.end(partition)
        for further in range(1, 2 * desk.watchers.limit):
            await desk.queue.link.call("XADD", outcomes, f"{number + further}-0", "strange", "entry")
    sent = await desk.end(4)
    assert sorted(ids(await desk.take(cursor, 4))) == sorted(sent)


@pytest.mark.parametrize("later_ms", [0, -HOUR_MS], ids=["at once", "its clock set back"])
async def test_a_redis_that_came_back_empty_is_followed_from_its_beginning(desk: Desk, later_ms: int) -> None:
    await desk.end(10)
    cursor = await desk.start()
    await desk.queue.empty()
    await desk.queue.pass_time(later_ms)
    async with asyncio.timeout(20), aclosing(desk.watchers.watch(cursor, ALL)) as watched:
        ended = asyncio.ensure_future(anext(watched))
        sent = await desk.end(1)
        seen = await ended
    assert ids([seen]) == sent


async def test_there_is_a_limit_and_stopping_ends_all(desk: Desk) -> None:
    cursor = await desk.start()
    async with aclosing(desk.watchers.watch("", ALL)) as one, aclosing(desk.watchers.watch("", ALL)) as two:
        await anext(one)
        await anext(two)
        with pytest.raises(Overloaded, match="2 watchers already"):
            await desk.take(cursor, 1)
        desk.stopping.set()
        with pytest.raises(Stopping):
            await anext(one)
    desk.stopping.clear()
    await desk.end(1)
    assert len(await desk.take(cursor, 1)) == 1, "who has gone makes room"


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "AQ==",
        "AgAEAAAAAAAAAAA=",
        str(Cursor([1] * 3)),
        str(Cursor([1, 2**63, 1, 1])),
        OF_ANOTHER_VERSION,
    ],
)
async def test_a_cursor_of_something_else_is_refused(desk: Desk, text: str) -> None:
    with pytest.raises(InvalidInput, match="cursor"):
        await desk.take(text, 1)


def test_a_cursor_may_be_as_far_as_numbers_go() -> None:
    positions = [0, 1, 2**62, 2**63 - 1]
    assert Cursor.parse(str(Cursor(positions)), 4).positions == positions


async def test_a_client_goes_on_where_it_was_when_the_server_is_restarted(
    desk: Desk, valkey: ValkeyServer, encryption_key: str, tmp_path: Path
) -> None:
    environment = {
        "REDIS_URL": valkey.url,
        "DATABASE_URL": f"sqlite:///{tmp_path}/front.db",
        "FEDSVC_NAMESPACE": desk.queue.settings.namespace,
        "FEDSVC_PARTITIONS": str(PARTITIONS),
        "FEDSVC_KEY_ENCRYPTION_KEYS": encryption_key,
        "FEDSVC_HTTP_LISTEN": "127.0.0.1:0",
        "FEDSVC_MAX_WATCHERS": "1",
        "FEDSVC_LISTEN": "127.0.0.1:0",
    }
    async with front(Settings.from_environment(environment)) as server:
        target = server.target
        environment["FEDSVC_LISTEN"] = target
        client = AsyncFedsvcClient(target, timeout=20.0)
        watched = client.watch_outcomes(heartbeats=True)
        assert (await anext(watched)).type is Told.HEARTBEAT
        first = await desk.end(2)
        got: list[OutcomeEvent] = []
        while len(got) < 2:
            event = await anext(watched)
            if event.type is Told.OUTCOME:
                got.append(event)
        with pytest.raises(ResourceExhausted):
            await anext(client.watch_outcomes())
        with pytest.raises(InvalidRequest, match="cursor"):
            await anext(client.watch_outcomes("nonsense"))
        bad = pb.WatchOutcomesRequest(event_types=[1, 77])  # type: ignore[list-item]
        with pytest.raises(grpc.aio.AioRpcError, match=r"event_types\[1\]: 77"):
            await anext(aiter(server.delivery.WatchOutcomes(bad)))
    second = await desk.end(2)
    environment["FEDSVC_MAX_WATCHERS"] = "2"  # the server may count one that has gone for a moment
    async with front(Settings.from_environment(environment)), asyncio.timeout(20):
        while len(got) < 4:
            event = await anext(watched)
            if event.type is Told.OUTCOME:
                got.append(event)
        assert sorted(e.delivery.delivery_id for e in got if e.delivery) == sorted(first + second)
        assert {e.delivery.reason for e in got if e.delivery} == {"UNAUTHORIZED"}
        await watched.aclose()  # type: ignore[attr-defined]
        await client.close()

        def blocking() -> list[str]:
            with FedsvcClient(target) as other:
                events = islice(other.watch_outcomes(got[1].cursor), 2)
                return [event.delivery.delivery_id for event in events if event.delivery]

        assert sorted(await asyncio.to_thread(blocking)) == sorted(second)
