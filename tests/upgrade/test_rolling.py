"""The version before and this one serve and deliver side by side, in both directions, and lose nothing."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from servers.processes import Fedsvc
from servers.unused_ports import unused_port, unused_ports
from servers.valkey import valkey_server

from upgrade.scenario import KEY_ID, activity, new_key, until
from upgrade.stage import HOSTS, SETTINGS, Inboxes, Stage, released, unpacked

#: activities before, while and after each change; each to all hosts
EACH = 6


async def test_servers_and_workers_of_two_versions_share_the_work_up_and_down(tmp_path: Path) -> None:
    version = released()[-1]
    old = unpacked(version, tmp_path / "old")
    assert old is not None, f"releases/{version} has no wheel: it is written by `make snapshot`"
    (tmp_path / "valkey").mkdir()
    with valkey_server(tmp_path / "valkey") as valkey:
        database = f"sqlite:///{tmp_path}/archive.db"
        stage = Stage(tmp_path, SETTINGS | {"REDIS_URL": valkey.url, "DATABASE_URL": database})
        mark(old, f"{version}+kept")
        with stage.command("--version", code=old) as told:
            told.process.wait(60)
            await until(lambda: shows(told, f"{version}+kept"), "the code of before runs")
        await stage.migrate(old)
        async with AsyncExitStack() as stack:
            rolling = Rolling(stage, stack, await stack.enter_async_context(Inboxes()))
            before = [await rolling.server(old), await rolling.worker(old)]
            await rolling.send("before")
            await rolling.arrived()

            await stage.migrate()  # first the schema, then one process after the other
            now = [await rolling.server(None), await rolling.worker(None)]
            await rolling.send("both, on the way up")
            await rolling.arrived()
            for process in before:
                await asyncio.to_thread(process.stop)
            await rolling.send("after", rolling.ports[1:])
            await rolling.arrived()

            again = [await rolling.server(old), await rolling.worker(old)]  # and back
            await stage.migrate(old)
            await rolling.send("both, on the way down", rolling.ports[1:])
            for process in now:
                await asyncio.to_thread(process.stop)
            await rolling.send("back", rolling.ports[2:])
            await rolling.arrived()
            await rolling.adds_up()
            for process in again:
                await asyncio.to_thread(process.stop)


def mark(code: Path, version: str) -> None:
    """Have that code say that it is not this checkout's."""
    module = code / "fedsvc/__init__.py"
    module.write_text(f'__version__ = "{version}"\n')


async def shows(process: Fedsvc, text: str) -> bool:
    return any(text in line for line in process.lines)


class Rolling:
    def __init__(self, stage: Stage, stack: AsyncExitStack, inboxes: Inboxes) -> None:
        self.stage, self.stack, self.inboxes = stage, stack, inboxes
        self.key = new_key()
        #: of each server that was started
        self.ports: list[list[int]] = []
        self.sent: set[str] = set()

    async def server(self, code: Path | None) -> Fedsvc:
        self.ports.append(unused_ports(2))
        return await self.stage.server(self.stack, self.ports[-1], code)

    async def worker(self, code: Path | None) -> Fedsvc:
        return await self.stage.worker(self.stack, unused_port(), code)

    async def send(self, name: str, servers: list[list[int]] | None = None) -> None:
        """By each of the servers in turn (all that there are, unless said otherwise)."""
        urls = [self.inboxes.url(host) for host in HOSTS]
        for ports in servers or self.ports:
            async with self.stage.client(ports) as client:
                for number in range(EACH):
                    made = activity(f"{name.replace(' ', '-')}-{ports[0]}-{number}")
                    self.sent.add(made["id"])
                    await client.fan_out(made, urls, private_key=self.key, key_id=KEY_ID)

    async def arrived(self) -> None:
        """All that was sent so far, at each host, once."""
        await self.inboxes.wait_for(len(self.sent) * len(HOSTS))
        assert dict(self.inboxes.ids) == {(host, id): 1 for host in HOSTS for id in self.sent}

    async def adds_up(self) -> None:
        async with self.stage.client(self.ports[-1]) as client:

            async def settled() -> bool:
                stats = await client.get_queue_stats()
                return stats.pending == 0 and stats.archive_backlog == 0

            await until(settled, "all is settled and archived")
            stats = await client.get_queue_stats()
            assert stats.conserved
            assert stats.accepted == stats.delivered == len(self.sent) * len(HOSTS)


@pytest.mark.parametrize("version", released())
def test_the_wheel_of_the_newest_release_is_kept(version: str, tmp_path: Path) -> None:
    kept = unpacked(version, tmp_path)
    assert (kept is not None) == (version == released()[-1])
    if kept is not None:
        assert f'__version__ = "{version}"' in (kept / "fedsvc/__init__.py").read_text()
