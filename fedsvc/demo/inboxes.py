"""A process with inboxes on loopback addresses, each an instance of its own with its own manners.

Run as `python -m fedsvc.demo.inboxes PLAN.json`. It prints one line of JSON (name to HOST:PORT) when it
listens, and serves until its standard input ends, so that it never outlives whoever started it. The
signature of every request is checked with apsig, an independent library; what arrived is told at
`/report` of any of them.

Each inbox has an address of its own in 127.77.0.0/16 where the system lets us bind it (Linux does), so
that it is a host of its own; elsewhere a port of its own.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web
from apsig.draft.verify import Verifier


@dataclass
class Instance:
    """One inbox: what it received, by activity id."""

    #: friendly; flaky: 503 twice; busy: 429 once; hangs: never answers
    manner: str
    refusals: Counter[str] = field(default_factory=Counter)
    received: Counter[str] = field(default_factory=Counter)
    bad_signatures: int = 0
    #: SHA-256 of the body, by activity id
    digests: dict[str, str] = field(default_factory=dict)


class Neighbourhood:
    def __init__(self, plan: dict[str, Any]) -> None:
        """`plan`: `instances` (name, which is an address to listen at, to manner) and `keys` (key id to
        public key as PEM)."""
        self._keys: dict[str, str] = plan["keys"]
        self.instances = {name: Instance(manner) for name, manner in plan["instances"].items()}
        #: (address, port) to name
        self._names: dict[tuple[str, int], str] = {}

    async def listen(self, runner: web.AppRunner) -> dict[str, str]:
        """Open all inboxes; returns name to HOST:PORT."""
        for name in self.instances:
            try:
                await web.TCPSite(runner, name, 0).start()
            except OSError:
                await web.TCPSite(runner, "127.0.0.1", 0).start()
            address, port = runner.addresses[-1][:2]
            self._names[address, port] = name
        return {name: f"{address}:{port}" for (address, port), name in self._names.items()}

    async def inbox(self, request: web.Request) -> web.Response:
        assert request.transport is not None
        instance = self.instances[self._names[request.transport.get_extra_info("sockname")[:2]]]
        body = await request.read()
        if not self._signed(request, body):
            instance.bad_signatures += 1
            return web.Response(status=401, text="signature does not verify")
        activity = json.loads(body)["id"]
        match instance.manner:
            case "hangs":
                await asyncio.sleep(3600)
            case "flaky" if instance.refusals[activity] < 2:
                instance.refusals[activity] += 1
                return web.Response(status=503, text="try again")
            case "busy" if instance.refusals[activity] < 1:
                instance.refusals[activity] += 1
                return web.Response(status=429, headers={"Retry-After": "1"}, text="too many requests")
        instance.received[activity] += 1
        instance.digests[activity] = hashlib.sha256(body).hexdigest()
        return web.Response(status=202)

    async def report(self, _: web.Request) -> web.Response:
        return web.json_response({name: vars(instance) for name, instance in self.instances.items()})

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
    sys.stdout.write(json.dumps(await neighbourhood.listen(runner)) + "\n")
    sys.stdout.flush()
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.buffer.read)
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(serve(json.loads(Path(sys.argv[1]).read_text())))
