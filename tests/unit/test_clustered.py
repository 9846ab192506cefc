"""A cluster of which one node hangs or is away. Nobody is spoken to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from redis.asyncio.cluster import PipelineCommand
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import MovedError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from fedsvc.queue.topology import Clustered

ONE, OTHER = ("GET", "one"), ("GET", "other")


class Node:
    """Answers with its own name, or as `trouble` says."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.response_callbacks: dict[str, Any] = {}
        self.trouble: RedisError | None = None
        self.asked = 0
        self.pinged = 0

    async def execute_pipeline(self, commands: Sequence[PipelineCommand]) -> None:
        self.asked += 1
        for command in commands:
            command.result = self.trouble or self.name.encode()

    async def execute_command(self, *command: str) -> bytes:
        self.pinged += 1
        await asyncio.sleep(0)
        if self.trouble is not None:
            raise self.trouble
        return b"PONG"


class Cluster:
    """Keys are on the node that has their name."""

    def __init__(self) -> None:
        self.nodes = {name: Node(name) for name in ("one", "other")}
        self.nodes_manager = SimpleNamespace(nodes_cache=self.nodes, initialize=self._learn)
        self.looks = 0
        #: looking at the cluster waits for it
        self.told = asyncio.Event()
        self.told.set()
        self._initialize = False

    async def _learn(self) -> None:
        self.looks += 1
        await self.told.wait()

    def get_node_from_key(self, key: str) -> Node:
        return self.nodes[key]

    def get_nodes(self) -> list[Node]:
        return list(self.nodes.values())

    async def aclose(self) -> None:
        pass


@pytest.fixture
async def made() -> AsyncIterator[Clustered]:
    made = Clustered([("127.0.0.1", 1)], {}, 8)
    made._cluster = Cluster()  # type: ignore[assignment]
    yield made
    await made.close()


@pytest.fixture
def cluster(made: Clustered) -> Any:
    return made._cluster


async def turns(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


async def test_a_node_that_was_late_is_asked_for_nothing_until_it_answers(
    made: Clustered, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Clustered, "PAUSE", 0.0)
    late = cluster.nodes["other"]
    late.trouble = RedisTimeoutError("late")
    await made.exchange([OTHER], None)
    for _ in range(3):
        first, second = await made.exchange([ONE, OTHER], None)
        assert first == b"one"
        assert isinstance(second, RedisTimeoutError)
    assert late.asked == 1
    late.trouble = None
    async with asyncio.timeout(10):
        while made._silent:
            await asyncio.sleep(0)
    assert await made.exchange([ONE, OTHER], None) == [b"one", b"other"]


async def test_nobody_listens_for_a_node_that_has_left_the_cluster(
    made: Clustered, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Clustered, "PAUSE", 0.0)
    late = cluster.nodes["other"]
    late.trouble = RedisTimeoutError("late")
    await made.exchange([OTHER], None)
    cluster.nodes["other"] = Node("other")
    async with asyncio.timeout(10):
        while made._silent:
            await asyncio.sleep(0)
    assert await made.exchange([OTHER], None) == [b"other"]


async def test_nobody_waits_for_what_is_learnt_while_a_node_is_away(
    made: Clustered, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Clustered, "PAUSE", 3600.0)
    cluster.nodes["other"].trouble = RedisConnectionError("away")
    cluster.told.clear()
    async with asyncio.timeout(10):
        for _ in range(20):
            first, second = await made.exchange([ONE, OTHER], None)
            assert first == b"one"
            assert isinstance(second, RedisConnectionError)
            await turns(5)
            cluster.told.set()
    assert cluster.looks == 1, "and it is looked at seldom: each time all connections are made anew"


async def test_who_was_sent_elsewhere_waits_for_what_is_learnt(made: Clustered, cluster: Any) -> None:
    cluster.nodes["other"].trouble = MovedError("1 127.0.0.1:2")
    cluster.told.clear()
    asking = asyncio.create_task(made.exchange([OTHER], None))
    await turns(5)
    assert not asking.done()
    cluster.nodes["other"].trouble = None
    cluster.told.set()
    assert await asking == [b"other"]
    assert cluster.looks == 1
