"""The server's HTTP side: /healthz, /readyz, /metrics and /depth, and the dashboard's pages, if any."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from fedsvc.server.monitor import Monitor


def application(
    monitor: Monitor,
    registry: CollectorRegistry,
    depth: Callable[[], Mapping[str, int] | None],
    pages: Sequence[web.AbstractRouteDef] = (),
) -> web.Application:
    """`depth`: how much there is to do, None if that is not known. `pages`: what else is served, below all of
    these."""

    async def healthz(_: web.Request) -> web.Response:
        """The process runs; whether it can serve is another question."""
        return web.json_response({"status": "ok"})

    async def readyz(_: web.Request) -> web.Response:
        if monitor.serving:
            return web.json_response({"status": "ready"})
        return web.json_response({"status": "not ready", "problems": {"redis": monitor.problem}}, status=503)

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def told_depth(_: web.Request) -> web.Response:
        """How many workers there should be follows this. Not knowing must not look like nothing to do."""
        found = depth()
        if found is None:
            return web.json_response({"error": "the queue was not read lately"}, status=503)
        return web.json_response(dict(found))

    app = web.Application()
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/depth", told_depth)
    app.add_routes(pages)
    return app
