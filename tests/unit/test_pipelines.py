"""How calls share pipelines, and what becomes of each when something goes wrong. No Redis is asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from redis import exceptions as theirs
from redis.asyncio.client import PubSub

from fedsvc.errors import FedsvcError, QueueUnavailable, RequestIdReused
from fedsvc.metrics import REDIS_ERRORS
from fedsvc.queue.durability import Durability
from fedsvc.queue.link import Link
from fedsvc.queue.script import Script
from fedsvc.queue.topology import Command

CONFIRM = ("WAIT", 1, 100)


class Held:
    """A Redis whose answers wait until a test lets them go."""

    def __init__(self) -> None:
        self.sent: list[list[Command]] = []
        self.confirms: list[Command | None] = []
        self.answers: list[asyncio.Future[list[Any]]] = []
        self.loaded: list[str] = []
        self.closed = False

    async def exchange(self, commands: Sequence[Command], confirm: Command | None) -> list[Any]:
        self.sent.append(list(commands))
        self.confirms.append(confirm)
        self.answers.append(asyncio.get_running_loop().create_future())
        return await self.answers[-1]

    async def everywhere(self, command: Command) -> list[Any]:
        self.loaded.append(str(command[-1]))
        return []

    def pubsub(self) -> PubSub:
        raise NotImplementedError

    async def close(self) -> None:
        self.closed = True

    def names(self) -> list[list[Any]]:
        return [[command[0] for command in commands] for commands in self.sent]


@pytest.fixture
async def link() -> AsyncIterator[Link]:
    link = Link("redis://127.0.0.1:1", linger=0.01)
    await link._topology.close()
    link._topology = Held()
    yield link
    for answer in held(link).answers:
        answer.cancel()
    await link.close()


def held(link: Link) -> Held:
    assert isinstance(link._topology, Held)
    return link._topology


async def turns(number: int = 5) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


async def sent(link: Link, pipelines: int) -> None:
    async with asyncio.timeout(10):
        while len(held(link).sent) < pipelines:
            await asyncio.sleep(0.001)


async def test_calls_of_one_turn_leave_together_at_once(link: Link) -> None:
    calls = [link.call("A"), link.call("B")]
    await turns()
    assert held(link).names() == [["A", "B"]]
    held(link).answers[0].set_result([1, 2])
    assert await asyncio.gather(*calls) == [1, 2]


async def test_while_two_pipelines_are_on_their_way_calls_of_several_turns_share_the_next(link: Link) -> None:
    link._linger = 0.2
    calls = []
    for name in "ABCD":
        calls.append(link.call(name))
        await turns()
    assert held(link).names() == [["A"], ["B"]]
    await sent(link, 3)
    assert held(link).names() == [["A"], ["B"], ["C", "D"]]
    for answer, told in zip(held(link).answers, ([1], [2], [3, 4]), strict=True):
        answer.set_result(told)
    assert await asyncio.gather(*calls) == [1, 2, 3, 4]
    again = link.call("E")  # nothing is on its way: at once
    await turns()
    assert held(link).names()[3:] == [["E"]]
    held(link).answers[3].set_result([5])
    assert await again == 5


async def test_no_more_pipelines_than_that_are_on_their_way_and_what_waits_leaves_when_one_is_back(
    link: Link,
) -> None:
    calls = [link.call("A", n) for n in range(Link.MAX_BATCH * Link.MAX_FLIGHTS + 2)]
    await sent(link, Link.MAX_FLIGHTS)
    await asyncio.sleep(0.03)  # thrice as long as a pipeline waits for company
    assert [len(commands) for commands in held(link).sent] == [Link.MAX_BATCH] * Link.MAX_FLIGHTS
    held(link).answers[3].set_result([0] * Link.MAX_BATCH)
    await sent(link, Link.MAX_FLIGHTS + 1)
    assert held(link).sent[-1] == [("A", n) for n in range(Link.MAX_BATCH * Link.MAX_FLIGHTS, len(calls))]
    for answer, commands in zip(held(link).answers, held(link).sent, strict=True):
        if not answer.done():
            answer.set_result([0] * len(commands))
    assert await asyncio.gather(*calls) == [0] * len(calls)


async def test_who_gives_up_takes_nothing_from_those_beside(link: Link) -> None:
    given_up, patient = link.call("A"), link.call("B")
    await turns()
    given_up.cancel()
    held(link).answers[0].set_result([1, 2])
    assert await patient == 2


async def test_an_error_is_its_callers_alone_and_a_lost_pipeline_everybodys(link: Link) -> None:
    before = REDIS_ERRORS._value.get()
    calls = [link.call("A"), link.call("B"), link.call("C")]
    await turns()
    held(link).answers[0].set_result([1, theirs.ResponseError("wrong type"), 3])
    first, wrong, third = await asyncio.gather(*calls, return_exceptions=True)
    assert (first, third) == (1, 3)
    assert type(wrong) is FedsvcError
    assert REDIS_ERRORS._value.get() == before, "a bug is not Redis being away"
    calls = [link.call("A"), link.call("B")]
    await turns()
    held(link).answers[1].set_exception(theirs.ConnectionError("reset"))
    lost = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(each) for each in lost] == [QueueUnavailable] * 2
    assert REDIS_ERRORS._value.get() == before + 1
    calls = [link.call("A"), link.call("B")]
    await turns()
    held(link).answers[2].set_result([theirs.OutOfMemoryError("command not allowed"), 2])
    assert [type(each) for each in await asyncio.gather(*calls, return_exceptions=True)] == [
        QueueUnavailable,
        int,
    ]
    assert REDIS_ERRORS._value.get() == before + 2


async def test_only_scripts_that_redis_does_not_know_are_loaded_and_run_again(link: Link) -> None:
    look, leave = Script("look"), Script("leave")
    calls = [link.run(look, "k"), link.call("A"), link.run(leave, "k"), link.run(look, "m")]
    await turns()
    unknown = theirs.NoScriptError("No matching script")
    held(link).answers[0].set_result([unknown, 1, 2, unknown])
    await turns()
    assert held(link).loaded == [look.source], "once"
    assert [command[3] for command in held(link).sent[1]] == ["k", "m"]
    held(link).answers[1].set_result([3, 4])
    assert await asyncio.gather(*calls) == [3, 1, 2, 4]


async def test_what_is_not_safe_in_time_is_told_to_those_who_want_it_safe_and_nobody_else(link: Link) -> None:
    link.durability = Durability(CONFIRM, 1)
    script = Script("look")
    calls = [link.run(script, "k", durable=True), link.run(script, "k"), link.run(script, "k", durable=True)]
    await turns()
    held(link).answers[0].set_result([1, 2, theirs.ResponseError("REUSED"), 0])
    unsafe, plain, reused = await asyncio.gather(*calls, return_exceptions=True)
    assert (type(unsafe), plain, type(reused)) == (QueueUnavailable, 2, RequestIdReused)
    safe = link.run(script, "k", durable=True)
    await turns()
    held(link).answers[1].set_result([5, 1])
    assert await safe == 5
    calls = [link.run(script, "k"), link.call("A")]
    await turns()
    held(link).answers[2].set_result([6, 7])
    assert await asyncio.gather(*calls) == [6, 7]
    assert held(link).confirms == [CONFIRM, CONFIRM, None]


async def test_whoever_waits_when_it_is_closed_is_told_and_nothing_is_sent_any_more(link: Link) -> None:
    flying = [link.call("A") for _ in range(Link.MAX_BATCH * Link.MAX_FLIGHTS)]
    await sent(link, Link.MAX_FLIGHTS)
    waiting = [link.call("B"), link.call("C")]
    waiting[0].cancel()
    closing, before = asyncio.create_task(link.close()), REDIS_ERRORS._value.get()
    await turns()
    with pytest.raises(QueueUnavailable, match="closed"):
        await waiting[1]
    for answer in held(link).answers[:-1]:
        answer.set_result([0] * Link.MAX_BATCH)
    assert await asyncio.gather(*flying[: -Link.MAX_BATCH]) == [0] * (len(flying) - Link.MAX_BATCH)
    assert not held(link).closed, "what is on its way has a second"
    await closing
    late = await asyncio.gather(*flying[-Link.MAX_BATCH :], return_exceptions=True)
    assert {(type(each), str(each)) for each in late} == {
        (QueueUnavailable, "the connection to Redis is closed")
    }
    with pytest.raises(QueueUnavailable, match="closed"):
        await link.call("D")
    assert held(link).closed
    assert REDIS_ERRORS._value.get() == before, "it was we who left"
    assert len(held(link).sent) == Link.MAX_FLIGHTS


async def test_a_call_that_was_about_to_leave_when_it_is_closed_sends_nothing(link: Link) -> None:
    call = link.call("A")
    await link.close()
    with pytest.raises(QueueUnavailable, match="closed"):
        await call
    assert held(link).sent == []


async def test_redis_tells_seconds_and_microseconds_and_we_milliseconds(link: Link) -> None:
    now = asyncio.ensure_future(link.now_ms())
    await turns()
    held(link).answers[0].set_result([[b"1700000000", b"12999"]])
    assert await now == 1_700_000_000_012


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (theirs.OutOfMemoryError("command not allowed"), QueueUnavailable),
        (theirs.ReadOnlyError("You can't write"), QueueUnavailable),
        (theirs.NoPermissionError("this user has no permissions"), QueueUnavailable),
        (theirs.ClusterDownError("The cluster is down"), QueueUnavailable),
        (theirs.ResponseError("MISCONF Redis is configured to save"), QueueUnavailable),
        (theirs.ResponseError("NOREPLICAS Not enough good replicas"), QueueUnavailable),
        (theirs.ResponseError("BUSY Redis is busy running a script"), QueueUnavailable),
        (theirs.ResponseError("ERR wrong number of arguments"), FedsvcError),
        (theirs.ResponseError("ERR user_script:1: REUSED"), RequestIdReused),
        (theirs.BusyLoadingError("Redis is loading the dataset"), QueueUnavailable),
        (theirs.AuthenticationError("invalid password"), QueueUnavailable),
        (theirs.TimeoutError("Timeout reading"), QueueUnavailable),
        (theirs.RedisClusterException("no node"), QueueUnavailable),
        (OSError("unreachable"), QueueUnavailable),
        (RuntimeError("unable to perform operation; the handler is closed"), QueueUnavailable),
        (RuntimeError("something else"), RuntimeError),
        (QueueUnavailable("ours"), QueueUnavailable),
    ],
    ids=lambda value: f"{type(value).__name__}" if isinstance(value, Exception) else "",
)
async def test_what_says_not_now_is_told_from_a_bug(
    link: Link, error: Exception, told: type[Exception]
) -> None:
    call = link.call("A")
    await turns()
    held(link).answers[0].set_result([error])
    with pytest.raises(told) as raised:
        await call
    assert type(raised.value) is told
