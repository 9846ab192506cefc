"""Registered signing keys, without what is secret."""

from __future__ import annotations

from aiohttp import web

from fedsvc.server.dashboard.visit import Visit, seen
from fedsvc.v1 import key_service_pb2 as pb

_SIZE = 100


async def listed(visit: Visit) -> web.Response:
    request = pb.ListKeysRequest(
        origin=visit.query("origin"), page_size=_SIZE, page_token=visit.query("page")
    )
    answer = await visit.call("ListKeys", request)
    return visit.render("keys.html", title="Keys", answer=answer)


async def delete(visit: Visit) -> web.Response:
    request = pb.DeleteKeyRequest(key_id=visit.field("key_id"), when_unused=True)
    answer = await visit.call("DeleteKey", request)
    return seen(visit.address("/keys", done="deferred" if answer.deferred else "deleted"))


PAGES = (("/keys", listed),)
ACTIONS = (("/keys/delete", delete),)
