"""The workers' HTTP side: /healthz, /readyz and /metrics of all processes of one `fedsvc worker`."""

from __future__ import annotations

import asyncio

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from fedsvc.config_types import Address
from fedsvc.errors import ConfigurationError
from fedsvc.supervisor import Supervisor, problems_of


def application(supervisor: Supervisor, metrics_dir: str) -> web.Application:
    async def healthz(_: web.Request) -> web.Response:
        alive = any(child.running for child in supervisor.children.values())
        return web.json_response({"status": "ok" if alive else "no process"}, status=200 if alive else 503)

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


async def listen(app: web.Application, address: Address) -> tuple[web.AppRunner, Address]:
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=2.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, address.host, address.port).start()
    except OSError as error:
        await runner.cleanup()
        raise ConfigurationError(
            "FEDSVC_HTTP_LISTEN", f"cannot listen on {address}: {error.strerror}"
        ) from None
    return runner, Address(address.host, runner.addresses[0][1])
