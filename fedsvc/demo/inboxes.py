"""A process with inboxes on loopback addresses, each an instance of its own with its own manners.

Run as `python -m fedsvc.demo.inboxes PLAN.json`. It prints one line of JSON when it listens, and serves until
its standard input ends, so that it never outlives whoever started it. The signature of every request is
checked with apsig, an independent library; what arrived is told at `/report` of the first address.

Addresses are 127.77.x.y where the system lets us bind them (Linux does), so that each inbox is a host.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from aiohttp import web
from apsig.draft.verify import Verifier

#: what an inbox may do before it is friendly, or instead
MANNERS: Final = ("friendly", "flaky", "busy", "hangs")


@dataclass
class Instance:
    """One inbox's state: what it received, by activity id."""

    manner: str
    refusals: Counter[str] = field(default_factory=Counter)
    received: Counter[str] = field(default_factory=Counter)
    bad_signatures: int = 0
    bodies: dict[str, str] = field(default_factory=dict)


class Neighbourhood:
    def __init__(self, plan: dict[str, Any]) -> None:
        """`plan`: `instances` (address to manner) and `keys` (key id to public key as PEM)."""
        self._keys: dict[str, str] = plan["keys"]
        self.instances = {address: Instance(manner) for address, manner in plan["instances"].items()}

    async def inbox(self, request: web.Request) -> web.Response:
        sockname = request.transport.get_extra_info("sockname") if request.transport else None
        instance = self.instances[sockname[0]] if sockname else Instance("friendly")
        body = await request.read()
        if not self._signed(request, body):
            instance.bad_signatures += 1
            return web.Response(status=401, text="signature does not verify")
        activity = json.loads(body)["id"]
        if instance.manner == "hangs":
            await asyncio.sleep(3600)
        if instance.manner == "flaky" and instance.refusals[activity] < 2:
            instance.refusals[activity] += 1
            return web.Response(status=503, text="try again")
        if instance.manner == "busy" and instance.refusals[activity] < 1:
            instance.refusals[activity] += 1
            return web.Response(status=429, headers={"Retry-After": "1"}, text="too many requests")
        instance.received[activity] += 1
        return web.Response(status=202)

    async def report(self, _: web.Request) -> web.Response:
        return web.json_response(
            {
                address: {"received": dict(i.received), "bad_signatures": i.bad_signatures}
                for address, i in self.instances.items()
            }
        )

    def _signed(self, request: web.Request, body: bytes) -> bool:
        header = request.headers.get("Signature", "")
        pem = next((pem for key_id, pem in self._keys.items() if f'keyId="{key_id}"' in header), None)
        if pem is None:
            return False
        url = f"http://{request.host}{request.raw_path}"
        verifier = Verifier(pem, request.method, url, dict(request.headers), body)
        return verifier.verify(raise_on_fail=False) is not None


async def serve(plan: dict[str, Any]) -> None:
    neighbourhood = Neighbourhood(plan)
    app = web.Application()
    app.router.add_post("/inbox", neighbourhood.inbox)
    app.router.add_get("/report", neighbourhood.report)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    port = 0
    for address in neighbourhood.instances:
        site = web.TCPSite(runner, address, port)
        await site.start()
        port = port or runner.addresses[0][1]
    sys.stdout.write(json.dumps({"port": port}) + "\n")
    sys.stdout.flush()
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, sys.stdin.buffer.read)
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(serve(json.loads(Path(sys.argv[1]).read_text())))
