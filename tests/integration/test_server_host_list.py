"""ListHosts and GetHost over gRPC, as operators and callers with rights to one instance see them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import grpc
import pytest
from servers.front import Front, front
from servers.hosts import PAUSED, MadeHost, put, some_hosts
from servers.queue import PARTITIONS, Queue, open_queue
from servers.valkey import ValkeyServer

from fedsvc.archive.archive import Archive
from fedsvc.archive.engine import create_engine
from fedsvc.config import Settings
from fedsvc.domain.delivery import Attempt, Delivery, DeliveryId, DeliveryState, Priority, Reason
from fedsvc.errors import ArchiveUnavailable
from fedsvc.queue.consumer import Signal
from fedsvc.queue.host_list import HostList
from fedsvc.server.caller import Caller
from fedsvc.server.pages import encode
from fedsvc.server.tokens import entry_text, new_token
from fedsvc.v1 import operations_service_pb2 as ops
from fedsvc.v1 import types_pb2

HOST = "h0.example"
TOKENS = {origin: new_token() for origin in ("a.example", "b.example", "*")}


@dataclass
class Site:
    server: Front
    queue: Queue
    archive: Archive

    async def call(self, method: str, request: Any, origin: str = "*") -> Any:
        call = getattr(self.server.operations, method)
        return await call(request, metadata=(("authorization", f"Bearer {TOKENS[origin]}"),), timeout=20)

    async def listed(self, **fields: Any) -> Any:
        return await self.call("ListHosts", ops.ListHostsRequest(**fields))

    async def recent(self, origin: str = "*") -> list[types_pb2.Attempt]:
        answer = await self.call("GetHost", ops.GetHostRequest(host=HOST), origin)
        return list(answer.recent_attempts)

    async def fails(self, number: int, origin: str, reason: Reason) -> DeliveryId:
        await self.queue.enqueue(f"f{number}", path=f"/{number}", origin=origin)
        (admitted,) = await self.queue.admit(1)
        await self.queue.settle(
            admitted, DeliveryState.RETRY, reason, wait_ms=3_600_000, signal=Signal.ANSWERED
        )
        return admitted.id

    async def archived(self, id: DeliveryId, origin: str, *attempts: Attempt) -> None:
        """The archive has it as delivered, after these."""
        delivery = Delivery(
            id, DeliveryState.DELIVERED, "https://me.example/1", "Like", "https://me.example/u/a",
            f"https://{HOST}/inbox", HOST, origin, f"https://{origin}/u/a#k", Priority.URGENT,
            len(attempts), Reason.OK, 202, history=attempts, outcome=id.sequence + 1,
        )  # fmt: skip
        await self.archive.record([replace(delivery, completed_ms=attempts[-1].time_ms)])


@pytest.fixture
def fresh() -> float:
    """Seconds for which a snapshot is good: the server itself takes one as it starts."""
    return 0.0


@pytest.fixture
async def site(
    valkey: ValkeyServer,
    namespace: str,
    environment: dict[str, str],
    fresh: float,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Site]:
    monkeypatch.setattr(HostList, "FRESH", fresh)
    entries = (
        entry_text(
            Caller(
                "all" if origin == "*" else origin[0], origins=None if origin == "*" else frozenset({origin})
            ),
            token,
        )
        for origin, token in TOKENS.items()
    )
    more = {"FEDSVC_PARTITIONS": str(PARTITIONS), "FEDSVC_TOKENS": " ".join(entries)}
    settings = Settings.from_environment(environment | more)
    async with front(settings) as server, open_queue(valkey.url, namespace) as queue:
        archive = Archive(create_engine(settings))
        try:
            yield Site(server, queue, archive)
        finally:
            await archive.close()


async def test_pages_lead_through_all_hosts_in_every_order(site: Site) -> None:
    made = some_hosts(250)
    await put(site.queue, made)
    expected = {
        ops.HOST_ORDER_UNSPECIFIED: sorted(made),
        ops.HOST_ORDER_BACKLOG: sorted(made, key=lambda m: (-m.backlog, m.name)),
        ops.HOST_ORDER_FAILURES: sorted(made, key=lambda m: (-m.failures, m.name)),
        ops.HOST_ORDER_LATENCY: sorted(made, key=lambda m: (-m.latency_ms, m.name)),
    }
    for order, hosts in expected.items():
        listed, token = [], ""
        for size in (100, 100, 50):
            page = await site.listed(order=order, page_size=100, page_token=token)
            assert len(page.hosts) == size
            listed += [host.host for host in page.hosts]
            token = page.next_page_token
        assert token == ""
        assert listed == [host.name for host in hosts]


async def test_hosts_are_filtered_by_state_and_name(site: Site) -> None:
    await put(site.queue, some_hosts(90))
    until = await site.queue.now_ms() + 60_000
    await put(site.queue, [MadeHost("paused.example", flags=PAUSED, pause_ms=until)])
    async with asyncio.timeout(10):  # figures for Prometheus may have been read between the two, for a second
        while not (await site.listed(name_contains="paused")).hosts:
            continue
    page = await site.listed(states=[ops.HOST_STATE_OPEN], name_contains="HOST-0000")
    assert [host.host for host in page.hosts] == [f"host-0000{n}.example" for n in (1, 4, 7)]
    page = await site.listed(states=[ops.HOST_STATE_PAUSED])
    assert [(host.host, host.state) for host in page.hosts] == [("paused.example", ops.HOST_STATE_PAUSED)]
    page = await site.listed(states=[ops.HOST_STATE_GONE])
    assert (len(page.hosts), page.next_page_token) == (0, "")


@pytest.mark.parametrize("fresh", [1e9])
async def test_a_host_that_was_just_paused_here_is_listed_as_paused(site: Site) -> None:
    await put(site.queue, [MadeHost(HOST)])
    await site.call("ResumeHost", ops.ResumeHostRequest(host=HOST))
    assert [host.state for host in (await site.listed()).hosts] == [ops.HOST_STATE_CLOSED]
    await site.call("PauseHost", ops.PauseHostRequest(host=HOST))
    assert [host.state for host in (await site.listed()).hosts] == [ops.HOST_STATE_PAUSED]
    await site.call("ResumeHost", ops.ResumeHostRequest(host=HOST))
    assert [host.state for host in (await site.listed()).hosts] == [ops.HOST_STATE_CLOSED]
    policy = ops.HostPolicy(max_in_flight=3)
    await site.call("UpdateHostPolicy", ops.UpdateHostPolicyRequest(host=HOST, policy=policy))
    assert [host.policy for host in (await site.listed()).hosts] == [policy]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"order": 9}, "order: 9 is not an order of hosts"),
        ({"states": [1, 77]}, r"states\[1\]: 77 is not a state of hosts"),
        ({"states": [0]}, r"states\[0\]: 0 is not a state of hosts"),
        ({"name_contains": "x" * 256}, "name_contains: is longer than 255"),
        ({"page_size": -1}, "page_size: is negative"),
        ({"page_token": encode([0, "h"], "hosts", 1, [], "")}, "page_token: was given for a call with other"),
        ({"page_token": encode("h", "hosts", 0, [], "")}, "page_token: is not one"),
        ({"page_token": encode([0, 1], "hosts", 0, [], "")}, "page_token: is not one"),
    ],
)
async def test_what_makes_no_sense_is_refused(site: Site, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match=said) as refused:
        await site.listed(**fields)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_host_that_nobody_knows_is_not_found(site: Site) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match=r"nothing was ever sent to nobody\.example") as missing:
        await site.call("GetHost", ops.GetHostRequest(host="nobody.example"))
    assert missing.value.code() is grpc.StatusCode.NOT_FOUND
    await site.call("PauseHost", ops.PauseHostRequest(host="nobody.example"))
    found = await site.call("GetHost", ops.GetHostRequest(host="nobody.example"))
    assert (found.host.state, list(found.recent_attempts)) == (ops.HOST_STATE_PAUSED, [])


async def test_recent_attempts_are_of_redis_and_of_the_archive_each_once(site: Site) -> None:
    first = await site.fails(1, "a.example", Reason.FORBIDDEN)
    (told,) = await site.recent()
    failed = Attempt(told.time.ToMilliseconds(), 5, 200, Reason.FORBIDDEN)
    last = replace(failed, time_ms=failed.time_ms + 5000, status=202, latency_ms=30, reason=Reason.OK)
    await site.archived(first, "a.example", failed, last)
    delivered, refused = await site.recent()
    assert [a.delivery_id for a in (delivered, refused)] == [str(first)] * 2
    assert refused == told
    assert (delivered.reason, delivered.http_status) == (types_pb2.REASON_OK, 202)
    assert delivered.latency.ToMilliseconds() == 30
    assert delivered.time.ToMilliseconds() == last.time_ms


async def test_twenty_attempts_are_told_newest_first(site: Site) -> None:
    now_ms = await site.queue.now_ms()
    for number in range(30):
        took = Attempt(now_ms - number * 1000, number, 202, Reason.OK)
        await site.archived(DeliveryId(0, (now_ms - 60_000 - number) * 1000), "a.example", took)
    await put(site.queue, [MadeHost(HOST)])
    assert [a.latency.ToMilliseconds() for a in await site.recent()] == list(range(20))


async def test_a_caller_is_told_of_its_own_attempts(site: Site) -> None:
    ids = {}
    for number, origin in enumerate(("a.example", "b.example")):
        ids[origin] = {str(await site.fails(number, origin, Reason.TIMEOUT))}
        id = DeliveryId(1, 1_000_000 + number)
        await site.archived(id, origin, Attempt(2000, 5, 202, Reason.OK))
        ids[origin].add(str(id))
    assert {a.delivery_id for a in await site.recent()} == ids["a.example"] | ids["b.example"]
    for origin, theirs in ids.items():
        assert {a.delivery_id for a in await site.recent(origin)} == theirs


async def test_without_the_archive_failures_are_told(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(*_: Any, **__: Any) -> Any:
        raise ArchiveUnavailable("the database does not answer")

    failed = await site.fails(1, "a.example", Reason.TIMEOUT)
    monkeypatch.setattr(Archive, "attempts_of_host", away)
    assert [a.delivery_id for a in await site.recent()] == [str(failed)]
