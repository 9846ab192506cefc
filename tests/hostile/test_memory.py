"""All attacks at once, several times over: the process that delivers stays small, and goes on delivering."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest
from servers.remote import ACCEPTED, Item, Remote, serving

from hostile.attacks import ATTACKS

TIMES = 5
MOST_GROWTH_BYTES = 50_000_000
#: seconds that a delivery to a good host may take meanwhile; the machine also runs the attackers
MOST_WAIT_S = 4.0


class Every(Remote):
    """Does what the path says, once for each connection."""

    items: tuple[Item, ...] = tuple(attack.item for attack in ATTACKS.values())

    async def read(self, reader: asyncio.StreamReader) -> None:
        await super().read(reader)
        path = self.got.pop().head.split(b" ")[1][1:]
        self.script = [ACCEPTED if path == b"good" else self.items[int(path)]]


@pytest.mark.alone
async def test_hundreds_of_attacks_at_once_cost_little_memory() -> None:
    async with serving(b"", kind=Every) as remote:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "hostile.memory", str(remote.port), str(TIMES)),
            cwd=Path(__file__).resolve().parents[1],
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(60):
                output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    told = json.loads(output)
    growth, before = told["growth"] / 1e6, told["before"] / 1e6
    print(f"{told['attacks']} attacks at once: at most {growth:.1f} MB beside the {before:.1f} MB before;")
    print(f"meanwhile {told['good']} deliveries to a good host, the slowest in {told['slowest']:.2f} s")
    assert told["wrong"] == {}
    assert told["growth"] < MOST_GROWTH_BYTES
    assert told["good"] > 0
    assert told["slowest"] < MOST_WAIT_S
