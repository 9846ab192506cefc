"""Hosts: found, read about, paused, resumed, limited."""

from __future__ import annotations

from aiohttp import web

from fedsvc.server.dashboard.visit import Visit, decimal, duration, seen, whole
from fedsvc.v1 import operations_service_pb2 as pb

_SORTS = {
    "backlog": pb.HOST_ORDER_BACKLOG,
    "failures": pb.HOST_ORDER_FAILURES,
    "latency": pb.HOST_ORDER_LATENCY,
    "name": pb.HOST_ORDER_UNSPECIFIED,
}
_SIZE = 100


async def listed(visit: Visit) -> web.Response:
    sort = visit.query("sort") if visit.query("sort") in _SORTS else "backlog"
    state = whole(visit.query("state"), "state")
    answer = await visit.call(
        "ListHosts",
        pb.ListHostsRequest(
            order=_SORTS[sort],
            states=[pb.HostState.ValueType(state)] if state else [],
            name_contains=visit.query("q"),
            page_size=_SIZE,
            page_token=visit.query("page"),
        ),
    )
    return visit.render(
        "hosts.html", title="Hosts", sort=sort, sorts=list(_SORTS), state=state, answer=answer
    )


async def one(visit: Visit) -> web.Response:
    answer = await visit.call("GetHost", pb.GetHostRequest(host=_host(visit)))
    host = answer.host.host
    return visit.render(
        "host.html",
        title=host,
        host=answer.host,
        attempts=answer.recent_attempts,
        defaults=visit.parts.settings,
    )


async def pause(visit: Visit) -> web.Response:
    minutes = decimal(visit.field("minutes"), "minutes")
    request = pb.PauseHostRequest(host=_host(visit), reason=visit.field("reason"))
    if minutes:
        request.duration.CopyFrom(duration(minutes * 60, "duration"))
    answer = await visit.call("PauseHost", request)
    return seen(visit.address(f"/hosts/{answer.host.host}", done="paused"))


async def resume(visit: Visit) -> web.Response:
    answer = await visit.call("ResumeHost", pb.ResumeHostRequest(host=_host(visit)))
    return seen(visit.address(f"/hosts/{answer.host.host}", done="resumed"))


async def limit(visit: Visit) -> web.Response:
    policy = pb.HostPolicy(
        max_in_flight=whole(visit.field("max_in_flight"), "max_in_flight"),
        rate_per_second=decimal(visit.field("rate_per_second"), "rate_per_second"),
        burst=whole(visit.field("burst"), "burst"),
    )
    answer = await visit.call(
        "UpdateHostPolicy", pb.UpdateHostPolicyRequest(host=_host(visit), policy=policy)
    )
    return seen(visit.address(f"/hosts/{answer.host.host}", done="policy"))


def _host(visit: Visit) -> str:
    return visit.request.match_info["host"]


PAGES = (("/hosts", listed), ("/hosts/{host}", one))
ACTIONS = (("/hosts/{host}/pause", pause), ("/hosts/{host}/resume", resume), ("/hosts/{host}/policy", limit))
