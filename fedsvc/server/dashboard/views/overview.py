"""What goes on now, and in the last quarter of an hour."""

from __future__ import annotations

from typing import Any

from aiohttp import web
from google.rpc import code_pb2

from fedsvc.server.dashboard import charts
from fedsvc.server.dashboard.calls import CallFailed
from fedsvc.server.dashboard.visit import Visit, to
from fedsvc.v1 import operations_service_pb2 as pb

#: seconds from left to right of a chart, at least and at most: all that this process has seen, in between
_LEAST, _MOST = 120.0, 900.0


async def page(visit: Visit) -> web.Response:
    """The whole page; what the script asks for every two seconds is the part that changes."""
    if visit.may("ListKeys") and not visit.may("GetQueueStats"):
        to("/keys")  # who signs in comes here first
    part = visit.query("part") == "live"
    values = await _values(visit)
    return visit.render("overview_live.html" if part else "overview.html", title="Overview", **values)


async def _values(visit: Visit) -> dict[str, Any]:
    stats = await visit.call("GetQueueStats", pb.GetQueueStatsRequest())
    memory = retries = None
    if visit.may("GetMemoryStatus"):
        try:
            memory = await visit.call("GetMemoryStatus", pb.GetMemoryStatusRequest())
            retries = await visit.call("GetRetryStats", pb.GetRetryStatsRequest())
        except CallFailed as failed:
            if failed.code != code_pb2.UNAVAILABLE:
                raise
    samples = list(visit.parts.history.samples)
    seen_s = (samples[-1].time_ms - samples[0].time_ms) / 1000 if samples else 0.0
    return {
        "stats": stats,
        "memory": memory,
        "retries": retries,
        "charts": charts.overview(samples, min(_MOST, max(_LEAST, seen_s))),
    }


PAGES = (("/", page),)
