"""What each released version has written is served by this one, whatever state it was in."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fedsvc_client import AsyncFedsvcClient, DeliveryState
from servers.queue import open_queue
from servers.structure import check
from servers.unused_ports import unused_ports
from servers.valkey import ValkeyServer, valkey_server

from fedsvc.queue.format import FORMAT
from upgrade.scenario import LATER_S, MANY, REGISTERED, activity, until, url
from upgrade.stage import FIT, PAUSED, RELEASES, SETTINGS, Inboxes, Stage, released
from upgrade.stored import MANIFEST, load_archive, load_queue

#: states that a delivery is in when it was saved, and in the end
ENDS = {
    "delivered": ("DELIVERED", "DELIVERED"),
    "dead": ("DEAD", "DELIVERED"),  # replayed
    "retry": ("RETRY", "DELIVERED"),
    **{f"down-{number}": ("RETRY", "DELIVERED") for number in range(5)},
    "behind-circuit": ("PARKED", "DELIVERED"),
    "paused": ("PARKED", "DELIVERED"),
    "in-flight": ("IN_FLIGHT", "DELIVERED"),
    "ready": ("READY", "DELIVERED"),
    "registered-key": ("READY", "DELIVERED"),
    "ordered-1": ("READY", "DELIVERED"),
    "ordered-2": ("PARKED", "DELIVERED"),
    "scheduled": ("SCHEDULED", "DELIVERED"),
    "expiring": ("READY", "EXPIRED"),
    "superseded": ("SUPERSEDED", "SUPERSEDED"),
    "superseding": ("READY", "DELIVERED"),
    "cancelled": ("CANCELLED", "CANCELLED"),
}


@dataclass
class Given:
    """Data of a version, in a server of its own."""

    valkey: ValkeyServer
    stage: Stage
    manifest: dict[str, Any]

    def now_is(self, seconds: int) -> None:
        """The queue's clock: so long after the data was saved."""
        shift = self.manifest["saved_ms"] + seconds * 1000 - int(time.time() * 1000)
        with self.valkey.client() as redis:
            for partition in range(int(SETTINGS["FEDSVC_PARTITIONS"])):
                redis.set(f"fedsvc:{{p{partition}}}:clock-shift", shift)

    def ids(self) -> dict[str, str]:
        return {name: told["id"] for name, told in self.manifest["deliveries"].items()}

    async def states(self, client: AsyncFedsvcClient) -> dict[str, str]:
        return {name: str((await client.get_delivery(id)).state) for name, id in self.ids().items()}


@pytest.fixture(params=released())
async def given(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Given]:
    source = RELEASES / request.param
    manifest = json.loads((source / MANIFEST).read_text())
    load_archive(source, tmp_path / "archive.db")
    (tmp_path / "valkey").mkdir()
    with valkey_server(tmp_path / "valkey") as valkey:
        load_queue(valkey, source, int(time.time() * 1000) - manifest["saved_ms"])
        database = f"sqlite:///{tmp_path}/archive.db"
        stage = Stage(tmp_path, SETTINGS | {"REDIS_URL": valkey.url, "DATABASE_URL": database})
        yield Given(valkey, stage, manifest)


async def test_deliveries_in_every_state_go_on_as_they_must(given: Given) -> None:
    await given.stage.migrate()
    given.now_is(0)
    ports = unused_ports(3)
    async with AsyncExitStack() as stack:
        await given.stage.server(stack, ports)
        client = await stack.enter_async_context(given.stage.client(ports))
        assert await given.states(client) == {name: states[0] for name, states in ENDS.items()}
        before = await client.get_queue_stats()
        assert before.conserved
        assert before.parked >= MANY
        await what_else_was_kept(given, client)

        inboxes = await stack.enter_async_context(Inboxes())
        given.now_is(LATER_S)
        await given.stage.worker(stack, ports[2])
        await client.update_host_policy(PAUSED)
        await client.resume_host(PAUSED)
        await client.replay_dead_letters([given.ids()["dead"]])

        async def all_ended() -> bool:
            return (await client.get_queue_stats()).pending == 0

        await until(all_ended, "nothing is pending")
        assert await given.states(client) == {name: states[1] for name, states in ENDS.items()}
        after = await client.get_queue_stats()
        assert after.conserved
        assert after.accepted == before.accepted
        received = {id: count for (_, id), count in inboxes.ids.items()}
        due = {n for n, (first, last) in ENDS.items() if last == "DELIVERED" and first != last}
        assert received == {f"https://me.example/a/{name}": 1 for name in due} | {
            "https://me.example/a/many": MANY
        }
        arrived = [id.rsplit("/", 1)[1] for _, id in inboxes.ids]
        assert arrived.index("ordered-1") < arrived.index("ordered-2")

        async def all_archived() -> bool:
            return (await client.get_queue_stats()).archive_backlog == 0

        await until(all_archived, "all is archived")
    async with open_queue(given.valkey.url, "fedsvc") as queue:
        await check(queue)


async def what_else_was_kept(given: Given, client: AsyncFedsvcClient) -> None:
    """Keys, limits, schedules, answers to calls, and who did what."""
    assert (await client.get_key(REGISTERED)).algorithm == "ED25519"
    paused, _ = await client.get_host(PAUSED)
    assert (paused.policy.max_in_flight, paused.policy.rate_per_second) == (3, 50.0)
    assert paused.pause_reason == "moving"
    schedules = {s.schedule_id: s for s in (await client.list_schedules()).schedules}
    assert schedules["weekly"].cron == "0 9 * * MON"
    assert schedules["weekly"].fan_out is not None
    assert schedules["tidy"].paused
    audited = {event.action for event in (await client.list_audit_events()).audit_events}
    assert {"host.pause", "host.policy"} <= audited
    letters = (await client.list_dead_letters()).dead_letters
    assert [(d.delivery_id, d.reason, d.attempts) for d in letters] == [(given.ids()["dead"], "GONE", 1)]
    delivered = await client.get_delivery(given.ids()["delivered"])
    assert delivered.attempt_history[0].http_status == 202
    again = await client.queue_activity(
        activity("registered-key"), url(FIT), key_id=REGISTERED, request_id="registered"
    )
    assert again.delivery_id == given.ids()["registered-key"]
    ready = (await client.list_deliveries("https://me.example/a/ready")).deliveries
    assert [(d.delivery_id, d.state) for d in ready] == [(given.ids()["ready"], DeliveryState.READY)]


async def test_a_queue_that_was_written_two_formats_later_is_refused(given: Given) -> None:
    written = given.manifest["format"]
    with given.valkey.client() as redis:
        assert redis.hgetall("fedsvc:formats") == {b"%d" % written: given.manifest["version"].encode()}
        redis.hset("fedsvc:formats", str(FORMAT + 2), "7.2.0")
    listen = {"FEDSVC_LISTEN": "127.0.0.1:0", "FEDSVC_HTTP_LISTEN": "127.0.0.1:0"}
    started = [given.stage.command(command, code=None, **listen) for command in ("server", "worker-process")]
    for process in started:
        process.start()
    for process in started:
        assert process.process.wait(60) == 1
        assert f"this queue holds data in format {FORMAT + 2}, of fedsvc 7.2.0" in process.stderr
