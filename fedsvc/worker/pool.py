"""`fedsvc worker`: runs worker processes; `pool_http.py` tells how they are."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Final

import structlog

from fedsvc.children import Child
from fedsvc.config import Settings
from fedsvc.config_files import check_authorities
from fedsvc.config_types import Address
from fedsvc.supervisor import Supervisor, problems_of

log = structlog.get_logger(__name__)

#: names the directory of their figures; prometheus-client reads it where the children import it
_METRICS: Final = "PROMETHEUS_MULTIPROC_DIR"
_REPORT_EVERY: Final = 0.5
#: seconds beyond a process's own grace until it is killed
_EXTRA_GRACE: Final = 10.0

Status = Callable[[dict[str, Any]], None]


def run(settings: Settings, *, status: Status | None = None) -> int:
    """Run `settings.processes` workers until SIGTERM or SIGINT; returns the exit code. Raises
    ConfigurationError."""
    check_authorities("FEDSVC_CA_FILE", settings.ca_file)
    metrics_dir = tempfile.mkdtemp(prefix="fedsvc-metrics-")
    try:
        return asyncio.run(_run(settings, status or (lambda _: None), metrics_dir))
    finally:
        shutil.rmtree(metrics_dir, ignore_errors=True)


async def _run(settings: Settings, status: Status, metrics_dir: str) -> int:
    environment = {**os.environ, _METRICS: metrics_dir}
    supervisor = Supervisor(settings.shutdown_grace + _EXTRA_GRACE)
    supervisor.handle_signals()
    cleanup: Callable[[], Awaitable[None]] | None = None
    reporting: asyncio.Task[None] | None = None
    try:
        for number in range(settings.processes):
            name = f"worker-{number}"
            await supervisor.add(name, partial(_start, supervisor, name, environment))
        # Half a second of imports, which the children's own start covers.
        from fedsvc import http_door
        from fedsvc.worker import pool_http

        app = pool_http.application(supervisor, metrics_dir)
        runner, http_at = await http_door.listen(app, settings.http_listen)
        cleanup = runner.cleanup
        log.info("listening", http=str(http_at), processes=settings.processes)
        reporting = asyncio.create_task(_report(supervisor, status, http_at))
        await supervisor.wait()
        return await supervisor.end()
    finally:
        await supervisor.end()
        if reporting is not None:
            reporting.cancel()
        if cleanup is not None:
            await cleanup()


async def _start(supervisor: Supervisor, name: str, environment: Mapping[str, str]) -> Child:
    """A process, in the place of the one of this name that has ended, if there was one."""
    if (former := supervisor.children.get(name)) is not None:
        from prometheus_client.multiprocess import mark_process_dead

        # What it counted counts; what it told of itself holds no more.
        mark_process_dead(former.process.pid, environment[_METRICS])  # type: ignore[no-untyped-call]
    return await Child.start(name, ("worker-process",), environment)


async def _report(supervisor: Supervisor, status: Status, http_at: Address) -> None:
    while True:
        problems = problems_of(supervisor)
        status({"ready": not problems, "problems": problems, "http": str(http_at)})
        await asyncio.sleep(0.05 if problems else _REPORT_EVERY)
