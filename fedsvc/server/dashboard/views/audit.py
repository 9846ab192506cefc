"""Who changed what."""

from __future__ import annotations

from aiohttp import web

from fedsvc.server.dashboard.visit import Visit, stamp
from fedsvc.v1 import operations_service_pb2 as pb

_SIZE = 100


async def listed(visit: Visit) -> web.Response:
    answer = await visit.call(
        "ListAuditEvents",
        pb.ListAuditEventsRequest(
            principal=visit.query("principal"),
            action=visit.query("action"),
            start_time=stamp(visit.query("since"), "since"),
            end_time=stamp(visit.query("until"), "until"),
            page_size=_SIZE,
            page_token=visit.query("page"),
        ),
    )
    return visit.render("audit.html", title="Audit", answer=answer)


PAGES = (("/audit", listed),)
