"""The workers' HTTP side: /healthz, /readyz and /metrics of all processes of one `fedsvc worker`."""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from fedsvc.supervisor import Supervisor, problems_of

#: seconds without a word from a process, which tells of itself every second, after which it is stuck
SILENCE: Final = 60.0


def stuck(supervisor: Supervisor) -> dict[str, str]:
    """Of each process that will not go on by itself: why. One that has ended is started again."""
    found = {} if supervisor.children else {"worker": "no process"}
    # A process that stops tells nothing any more, and has a deadline of its own.
    for name, child in () if supervisor.stopping else supervisor.children.items():
        if not child.running:
            continue
        if child.silent_s > SILENCE:
            found[name] = f"no word for {child.silent_s:.0f} s"
        elif loops := child.status.get("stuck"):
            found[name] = f"does not come round any more: {', '.join(loops)}"
    return found


def application(supervisor: Supervisor, metrics_dir: str) -> web.Application:
    async def healthz(_: web.Request) -> web.Response:
        """Fails only for what a new start would mend, and not while something is away."""
        problems = stuck(supervisor)
        if problems:
            return web.json_response({"status": "stuck", "problems": problems}, status=503)
        return web.json_response({"status": "ok"})

    async def readyz(_: web.Request) -> web.Response:
        """Follows the loops of the processes, not the port."""
        problems = problems_of(supervisor)
        if problems:
            return web.json_response({"status": "not ready", "problems": problems}, status=503)
        return web.json_response({"status": "ready"})

    async def metrics(_: web.Request) -> web.Response:
        registry = CollectorRegistry()
        MultiProcessCollector(registry, path=metrics_dir)  # type: ignore[no-untyped-call]
        body = await asyncio.to_thread(generate_latest, registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", metrics)
    return app
