"""Is attacked in all ways at once and tells what it cost: `python -m hostile.memory PORT TIMES`.

The server is elsewhere, so that what is measured is ours alone; /<n> is the nth attack, /good takes all.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import uvloop
from servers.remote import deliver, delivering, open_files

from fedsvc.worker import transport
from hostile.attacks import ATTACKS

DELIVERY_TIMEOUT_S = 5.0
BODY_WAIT_S = 1.0


def _resident(which: str) -> int:
    """Bytes: VmRSS, what is used now, or VmHWM, the most since the last reset."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith(which))
    return int(line.split()[1]) * 1024


async def run(port: int, times: int) -> dict[str, Any]:
    transport.BODY_WAIT_S = BODY_WAIT_S  # type: ignore[misc]
    server = f"http://127.0.0.1:{port}"
    names = list(ATTACKS)
    wrong: Counter[str] = Counter()
    under_attack = True
    slowest = 0.0
    good = 0

    async with delivering() as deliverer:  # what is loaded once is not counted
        for _ in range(20):
            await deliver(deliverer, f"{server}/good")
    files = open_files()
    async with delivering(delivery_timeout=DELIVERY_TIMEOUT_S) as deliverer:

        async def attacked(number: int) -> None:
            expected = ATTACKS[names[number]]
            verdict = (await deliver(deliverer, f"{server}/{number}")).verdict
            if (verdict.reason, verdict.status) != (expected.reason, expected.status):
                wrong[f"{names[number]}: {verdict.reason.name} {verdict.status}"] += 1

        async def go_on() -> None:
            """Deliveries to a host that does nothing bad, meanwhile."""
            nonlocal good, slowest
            while under_attack:
                begun = time.monotonic()
                verdict = (await deliver(deliverer, f"{server}/good")).verdict
                slowest = max(slowest, time.monotonic() - begun)
                good += verdict.status == 202

        await deliver(deliverer, f"{server}/good")
        Path("/proc/self/clear_refs").write_text("5")  # from here on counts VmHWM
        before = _resident("VmRSS")
        others = asyncio.create_task(go_on())
        await asyncio.gather(*(attacked(number) for _ in range(times) for number in range(len(names))))
        under_attack = False
        await others
        peak = _resident("VmHWM")
    async with asyncio.timeout(10):
        while open_files() > files:
            await asyncio.sleep(0)
    return {
        "attacks": times * len(names),
        "before": before,
        "growth": peak - before,
        "good": good,
        "slowest": slowest,
        "wrong": wrong,
    }


if __name__ == "__main__":
    print(json.dumps(uvloop.run(run(int(sys.argv[1]), int(sys.argv[2])))))
