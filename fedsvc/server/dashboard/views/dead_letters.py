"""Dead letters: chosen, read, replayed, purged; and the operations that do it."""

from __future__ import annotations

import asyncio
import secrets

from aiohttp import web
from google.rpc import code_pb2

from fedsvc.server.dashboard.calls import CallFailed
from fedsvc.server.dashboard.visit import Visit, seen, stamp, whole
from fedsvc.v1 import operations_service_pb2 as pb
from fedsvc.v1 import types_pb2

_SIZE = 100
#: what an address or form says of a filter
FIELDS = ("host", "activity_type", "actor", "reason", "http_status", "since", "until")
#: seconds that a dry run may take before the page is shown without its count
_PATIENCE = 10.0


def _filter(given: dict[str, str]) -> pb.DeadLetterFilter:
    """Raises CallFailed."""
    return pb.DeadLetterFilter(
        host=given["host"],
        activity_type=given["activity_type"],
        actor=given["actor"],
        reason=types_pb2.Reason.ValueType(whole(given["reason"], "reason")),
        http_status=whole(given["http_status"], "http_status"),
        start_time=stamp(given["since"], "since"),
        end_time=stamp(given["until"], "until"),
    )


async def listed(visit: Visit) -> web.Response:
    given = {name: visit.query(name) for name in FIELDS}
    asked = _filter(given)
    request = pb.ListDeadLettersRequest(filter=asked, page_size=_SIZE, page_token=visit.query("page"))
    answer = await visit.call("ListDeadLetters", request)
    return visit.render(
        "dead_letters.html",
        title="Dead letters",
        given=given,
        asked=asked,
        answer=answer,
        count=await _count(visit, given, answer),
    )


async def _count(visit: Visit, given: dict[str, str], answer: pb.ListDeadLettersResponse) -> int | None:
    """How many fit, as far as it is known without counting them."""
    if not answer.next_page_token and not visit.query("page"):
        return len(answer.dead_letters)
    if any(given.values()) or not visit.may("ReplayDeadLetters"):
        return None
    return int((await visit.call("GetQueueStats", pb.GetQueueStatsRequest())).dead)


async def one(visit: Visit) -> web.Response:
    id = visit.request.match_info["id"]
    answer = await visit.call("GetDeadLetter", pb.GetDeadLetterRequest(delivery_id=id))
    return visit.render(
        "delivery.html", title=f"Dead letter {id}", delivery=answer.dead_letter, body=answer.activity
    )


async def confirm(visit: Visit) -> web.Response:
    """What would be replayed or purged, counted, before it is."""
    kind, ids, given = _asked(visit)
    request = _request(kind, ids, given, dry_run=True, limit=visit.field("limit"))
    operation = (await visit.call(_METHODS[kind], request)).operation
    end = asyncio.get_running_loop().time() + _PATIENCE
    while not operation.done and asyncio.get_running_loop().time() < end:
        await asyncio.sleep(0.05)
        answer = await visit.call("GetOperation", pb.GetOperationRequest(operation_id=operation.operation_id))
        operation = answer.operation
    return visit.render(
        "confirm.html",
        title=f"{kind.capitalize()} dead letters",
        kind=kind,
        ids=ids,
        given=given,
        limit=visit.field("limit"),
        counted=operation,
        request_id=secrets.token_hex(16),
    )


async def carry_out(visit: Visit) -> web.Response:
    kind, ids, given = _asked(visit)
    request = _request(kind, ids, given, dry_run=False, limit=visit.field("limit"))
    request.request_id = visit.field("request_id")  # a form that is sent twice does it once
    operation = (await visit.call(_METHODS[kind], request)).operation
    return seen(visit.address(f"/operations/{operation.operation_id}", done="started"))


async def operations(visit: Visit) -> web.Response:
    request = pb.ListOperationsRequest(page_size=_SIZE, page_token=visit.query("page"))
    answer = await visit.call("ListOperations", request)
    return visit.render("operations.html", title="Operations", answer=answer)


async def operation(visit: Visit) -> web.Response:
    id = visit.request.match_info["id"]
    answer = await visit.call("GetOperation", pb.GetOperationRequest(operation_id=id))
    part = visit.query("part") == "live"
    template = "operation_live.html" if part else "operation.html"
    return visit.render(template, title=f"Operation {id}", operation=answer.operation)


def _asked(visit: Visit) -> tuple[str, list[str], dict[str, str]]:
    """What is to be done, with these ids or else with all that fit. Raises CallFailed, HTTPBadRequest."""
    kind, _, which = visit.field("kind").partition(" ")
    if kind not in _METHODS or which not in ("", "ticked", "all"):
        raise web.HTTPBadRequest
    ids = [] if which == "all" else visit.form.get("ids", [])
    if which == "ticked" and not ids:
        raise CallFailed(code_pb2.INVALID_ARGUMENT, "No dead letter is ticked, so nothing was done.", {})
    return kind, ids, {name: visit.field(name) for name in FIELDS}


def _request(
    kind: str, ids: list[str], given: dict[str, str], *, dry_run: bool, limit: str
) -> pb.ReplayDeadLettersRequest | pb.PurgeDeadLettersRequest:
    make = pb.ReplayDeadLettersRequest if kind == "replay" else pb.PurgeDeadLettersRequest
    request = make(dry_run=dry_run, limit=whole(limit, "limit"))
    if ids:
        request.delivery_ids.extend(ids)
    else:
        request.filter.CopyFrom(_filter(given))
    return request


_METHODS = {"replay": "ReplayDeadLetters", "purge": "PurgeDeadLetters"}
PAGES = (
    ("/dead", listed),
    ("/dead/{id}", one),
    ("/operations", operations),
    ("/operations/{id}", operation),
)
ACTIONS = (("/dead/confirm", confirm), ("/dead/do", carry_out))
