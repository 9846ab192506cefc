"""The server's HTTP side: /healthz, /readyz and /metrics."""

from __future__ import annotations

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from fedsvc.config_types import Address
from fedsvc.server.monitor import Monitor


def application(monitor: Monitor, registry: CollectorRegistry) -> web.Application:
    async def healthz(_: web.Request) -> web.Response:
        """The process runs; whether it can serve is another question."""
        return web.json_response({"status": "ok"})

    async def readyz(_: web.Request) -> web.Response:
        if monitor.serving:
            return web.json_response({"status": "ready"})
        return web.json_response({"status": "not ready", "problems": {"redis": monitor.problem}}, status=503)

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", metrics)
    return app


async def listen(app: web.Application, address: Address) -> tuple[web.AppRunner, Address]:
    """Serve `app`; returns what to clean up and where it listens. Raises OSError if it cannot."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=2.0)
    await runner.setup()
    site = web.TCPSite(runner, address.host, address.port)
    await site.start()
    port = runner.addresses[0][1]
    return runner, Address(address.host, port)
