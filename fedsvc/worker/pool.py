"""`fedsvc worker`: worker processes, and the HTTP side that tells how they are."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import structlog
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from fedsvc.children import Child
from fedsvc.config import Address, Settings
from fedsvc.errors import ConfigurationError
from fedsvc.supervisor import Supervisor

log = structlog.get_logger(__name__)

_REPORT_EVERY: Final = 0.5
#: seconds beyond a process's own grace until it is killed
_EXTRA_GRACE: Final = 10.0

Status = Callable[[dict[str, Any]], None]


def run(settings: Settings, *, status: Status | None = None) -> int:
    """Run `settings.processes` workers until SIGTERM or SIGINT; returns the exit code. Raises
    ConfigurationError."""
    metrics_dir = tempfile.mkdtemp(prefix="fedsvc-metrics-")
    try:
        return asyncio.run(_run(settings, status or (lambda _: None), metrics_dir))
    finally:
        shutil.rmtree(metrics_dir, ignore_errors=True)


async def _run(settings: Settings, status: Status, metrics_dir: str) -> int:
    # prometheus-client reads it where the children import it.
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": metrics_dir}
    supervisor = Supervisor(settings.shutdown_grace + _EXTRA_GRACE)
    supervisor.handle_signals()
    runner: web.AppRunner | None = None
    reporting: asyncio.Task[None] | None = None
    try:
        for number in range(settings.processes):
            name = f"worker-{number}"
            await supervisor.add(name, partial(_start, name, environment))
        runner, http_at = await _listen(application(supervisor, metrics_dir), settings.http_listen)
        log.info("listening", http=str(http_at), processes=settings.processes)
        reporting = asyncio.create_task(_report(supervisor, status, http_at))
        await supervisor.wait()
        return await supervisor.end()
    finally:
        await supervisor.end()
        if reporting is not None:
            reporting.cancel()
        if runner is not None:
            await runner.cleanup()


async def _start(name: str, environment: Mapping[str, str]) -> Child:
    return await Child.start(name, ("worker-process",), environment)


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


def problems_of(supervisor: Supervisor) -> dict[str, Any]:
    """Of each process that is not ready: why."""
    if supervisor.stopping:
        return {"worker": "stopping"}
    problems: dict[str, Any] = {}
    for name, child in supervisor.children.items():
        if not child.running:
            problems[name] = "ended"
        elif not child.ready:
            problems[name] = child.status.get("problems") or "no word from it"
    return problems


async def _listen(app: web.Application, address: Address) -> tuple[web.AppRunner, Address]:
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


async def _report(supervisor: Supervisor, status: Status, http_at: Address) -> None:
    while True:
        problems = problems_of(supervisor)
        status({"ready": not problems, "problems": problems, "http": str(http_at)})
        await asyncio.sleep(0.05 if problems else _REPORT_EVERY)
