"""What became of a post: an activity is looked up, with every recipient and its state."""

from __future__ import annotations

import re

from aiohttp import web
from google.rpc import code_pb2

from fedsvc.server.dashboard.calls import CallFailed
from fedsvc.server.dashboard.visit import Visit, seen, to, whole
from fedsvc.v1 import delivery_service_pb2 as pb
from fedsvc.v1 import types_pb2

_DELIVERY = re.compile(r"\d+-\d+")
_SIZE = 100


async def look_up(visit: Visit) -> web.Response:
    visit.need("ListDeliveries")
    asked = visit.query("id")
    if _DELIVERY.fullmatch(asked):
        to(visit.address(f"/deliveries/{asked}"))
    if not asked:
        return visit.render("activity.html", title="Activities", asked="", answer=None, state=0, problem="")
    state = whole(visit.query("state"), "state")
    request = pb.ListDeliveriesRequest(
        activity_id=asked,
        states=[types_pb2.DeliveryState.ValueType(state)] if state else [],
        page_size=_SIZE,
        page_token=visit.query("page"),
    )
    try:
        answer = await visit.call("ListDeliveries", request)
    except CallFailed as failed:
        return _not_found(visit, asked, failed)
    return visit.render(
        "activity.html", title="Activity", asked=asked, answer=answer, state=state, problem=""
    )


async def delivery(visit: Visit) -> web.Response:
    id = visit.request.match_info["id"]
    try:
        answer = await visit.call("GetDelivery", pb.GetDeliveryRequest(delivery_id=id))
    except CallFailed as failed:
        return _not_found(visit, id, failed)
    return visit.render("delivery.html", title=f"Delivery {id}", delivery=answer.delivery, body=None)


def _not_found(visit: Visit, asked: str, failed: CallFailed) -> web.Response:
    """The page with what was asked for, to be put right. Raises CallFailed, if it is of another kind."""
    if failed.code != code_pb2.NOT_FOUND or not visit.may("ListDeliveries"):
        raise failed
    return visit.render(
        "activity.html",
        status=404,
        title="Activities",
        asked=asked,
        answer=None,
        state=0,
        problem=failed.message,
    )


async def cancel(visit: Visit) -> web.Response:
    """All of an activity that was not sent yet."""
    id = visit.field("id")
    await visit.call("CancelDeliveries", pb.CancelDeliveriesRequest(activity_id=id))
    return seen(visit.address("/activities", id=id, done="cancelled"))


PAGES = (("/activities", look_up), ("/deliveries/{id}", delivery))
ACTIONS = (("/activities/cancel", cancel),)
