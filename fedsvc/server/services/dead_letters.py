"""The part of OperationsService about dead letters and what is done with many of them."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, Final

from fedsvc.domain.dead_letters import LONGEST_ACTOR, LONGEST_TYPE, DeadLetterFilter
from fedsvc.domain.delivery import DeliveryState, Reason
from fedsvc.domain.operation import Operation, OperationKind, Order
from fedsvc.errors import InvalidInput, NotFound
from fedsvc.queue.dead_letters import DeadLetters, Position
from fedsvc.queue.operations import Operations
from fedsvc.queue.reader import Reader
from fedsvc.server import convert, pages
from fedsvc.server.audit import Audit
from fedsvc.server.caller import allowed_origins, caller
from fedsvc.server.errors import rpc
from fedsvc.server.fields import delivery_id, host_name, http_status, plain_text, request_name, time_ms
from fedsvc.server.operation_runner import OperationRunner
from fedsvc.v1 import operations_service_pb2 as pb

#: ids in one call
_MOST_IDS: Final = 1000
_OPERATION_ID: Final = re.compile(r"[0-9a-f]{20}")


class DeadLetterDesk:
    def __init__(
        self,
        reader: Reader,
        letters: DeadLetters,
        operations: Operations,
        runner: OperationRunner,
        audit: Audit,
    ) -> None:
        self._reader = reader
        self._letters = letters
        self._operations = operations
        self._runner = runner
        self._audit = audit

    @rpc
    async def ListDeadLetters(
        self, request: pb.ListDeadLettersRequest, context: Any
    ) -> pb.ListDeadLettersResponse:
        chosen = _filter(request)
        size = pages.page_size(request.page_size)
        arguments = ("dead", sorted(chosen.as_json().items()))
        after = pages.decode(request.page_token, *arguments, read=_position)
        page = await self._letters.page(after=after, limit=size, chosen=chosen, origins=allowed_origins())
        response = pb.ListDeadLettersResponse(dead_letters=[convert.delivery(d) for d in page.letters])
        if page.next is not None:
            response.next_page_token = pages.encode(list(page.next), *arguments)
        return response

    @rpc
    async def GetDeadLetter(self, request: pb.GetDeadLetterRequest, context: Any) -> pb.GetDeadLetterResponse:
        id = delivery_id(request.delivery_id)
        origins = allowed_origins()
        found = await self._reader.get(id, origins)
        if found is None or found.state is not DeliveryState.DEAD:
            raise NotFound(f"there is no dead letter {id}")
        return pb.GetDeadLetterResponse(
            dead_letter=convert.delivery(found), activity=await self._reader.body(id, origins) or b""
        )

    @rpc
    async def ReplayDeadLetters(
        self, request: pb.ReplayDeadLettersRequest, context: Any
    ) -> pb.ReplayDeadLettersResponse:
        return pb.ReplayDeadLettersResponse(operation=await self._begin(OperationKind.REPLAY, request))

    @rpc
    async def PurgeDeadLetters(
        self, request: pb.PurgeDeadLettersRequest, context: Any
    ) -> pb.PurgeDeadLettersResponse:
        return pb.PurgeDeadLettersResponse(operation=await self._begin(OperationKind.PURGE, request))

    @rpc
    async def GetOperation(self, request: pb.GetOperationRequest, context: Any) -> pb.GetOperationResponse:
        if not _OPERATION_ID.fullmatch(request.operation_id):
            raise InvalidInput("operation_id", "is not an operation's id")
        found = await self._operations.get(request.operation_id)
        if found is None:
            raise NotFound(f"there is no operation {request.operation_id}")
        return pb.GetOperationResponse(operation=await self._shown(found))

    @rpc
    async def ListOperations(
        self, request: pb.ListOperationsRequest, context: Any
    ) -> pb.ListOperationsResponse:
        size = pages.page_size(request.page_size)
        after = pages.decode(request.page_token, "operations", read=pages.number_and_text)
        found = await self._operations.list(after=after, limit=size + 1)
        response = pb.ListOperationsResponse(operations=[await self._shown(o) for o in found[:size]])
        if len(found) > size:
            last = found[size - 1]
            response.next_page_token = pages.encode([last.created_ms, last.id], "operations")
        return response

    async def _begin(
        self, kind: OperationKind, request: pb.ReplayDeadLettersRequest | pb.PurgeDeadLettersRequest
    ) -> pb.Operation:
        if len(request.delivery_ids) > _MOST_IDS:
            raise InvalidInput("delivery_ids", f"has {len(request.delivery_ids)}; {_MOST_IDS} are allowed")
        if request.delivery_ids and request.HasField("filter"):
            raise InvalidInput("filter", "cannot be given with delivery_ids")
        if not request.delivery_ids and not request.HasField("filter"):
            raise InvalidInput("filter", "is required unless delivery_ids are given; an empty one means all")
        if not 0 <= request.limit < 2**53:
            raise InvalidInput("limit", "is negative or too large")
        ids = [delivery_id(text, f"delivery_ids[{i}]") for i, text in enumerate(request.delivery_ids)]
        order = Order(kind, tuple(dict.fromkeys(ids)), _filter(request), int(request.limit), request.dry_run)
        request_id = request_name(request.request_id)
        bounds = await self._letters.bounds()
        operation, new = await self._operations.begin(order, caller().name, bounds, request_id=request_id)
        # Also if it was begun by a call before: whoever repeats it may do so because this has failed then.
        await self._audit.record_begin(operation, f"dead.{kind.value}", **_told(order))
        if new:
            self._runner.look()
        return await self._shown(operation)

    async def _shown(self, operation: Operation) -> pb.Operation:
        if not operation.ended_ms and not operation.order.dry_run:
            operation = replace(operation, completed=await self._letters.moved(operation.id))
        return convert.operation(operation)


async def tell_end(audit: Audit, operation: Operation, completed: int) -> None:
    """Into the audit, how an operation ended. Raises QueueUnavailable."""
    total, error = operation.progress.total, operation.error
    await audit.record_end(
        operation,
        f"dead.{operation.order.kind.value}.end",
        total=total,
        completed=completed,
        dry_run=operation.order.dry_run,
        **({"error": error} if error else {}),
    )


def _told(order: Order) -> dict[str, Any]:
    details: dict[str, Any] = {"dry_run": order.dry_run}
    if order.ids:
        details["ids"] = len(order.ids)
    else:
        details["filter"] = order.chosen.as_json()
    return details | ({"limit": order.limit} if order.limit else {})


def _filter(request: Any) -> DeadLetterFilter:
    """Raises InvalidInput."""
    given: pb.DeadLetterFilter = request.filter
    reason = None
    if given.reason:
        try:
            reason = Reason(given.reason)
        except ValueError:
            raise InvalidInput("filter.reason", f"{given.reason} is not a reason") from None
    chosen = DeadLetterFilter(
        host=host_name("filter.host", given.host) if given.host else "",
        activity_type=plain_text("filter.activity_type", given.activity_type, LONGEST_TYPE),
        actor=plain_text("filter.actor", given.actor, LONGEST_ACTOR),
        reason=reason,
        status=http_status("filter.http_status", given.http_status),
        start_ms=time_ms(given, "start_time", "filter.start_time"),
        end_ms=time_ms(given, "end_time", "filter.end_time"),
    )
    if chosen.end_ms and chosen.end_ms <= chosen.start_ms:
        raise InvalidInput("filter.end_time", "is not after start_time")
    return chosen


def _position(position: Any) -> Position:
    """Raises ValueError."""
    if not isinstance(position, list) or len(position) != 2:
        raise ValueError("is no place in the list")
    return Position(pages.number(position[0]), pages.number(position[1]))
