"""DeliveryService: takes activities, and tells what became of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from functools import partial
from typing import Any, Final

import structlog

from fedsvc.config import Settings
from fedsvc.domain.delivery import DeliveryId, DeliveryState
from fedsvc.domain.events import EventType
from fedsvc.errors import (
    HandlerFailed,
    InvalidInput,
    KeyUnavailable,
    NotFound,
    Overloaded,
    PermissionDenied,
    RequestIdReused,
)
from fedsvc.queue.canceller import Canceller
from fedsvc.queue.keystore import KeyStore
from fedsvc.queue.producer import Place, Producer
from fedsvc.server import convert, pages
from fedsvc.server.caller import allowed_origins, caller
from fedsvc.server.errors import item_error, rpc, rpc_stream
from fedsvc.server.fields import delivery_id, host_name, request_name
from fedsvc.server.intake import Intake, Submission
from fedsvc.server.limits import Limits
from fedsvc.server.lookup import Lookup
from fedsvc.server.metrics import ACCEPTED, DUPLICATES, REJECTED
from fedsvc.server.pressure import Pressure
from fedsvc.server.quota import Quota
from fedsvc.server.turns import Turn, about, in_turn
from fedsvc.server.watch import Filter, Watchers
from fedsvc.v1 import delivery_service_pb2 as pb
from fedsvc.v1 import types_pb2
from fedsvc.v1.delivery_service_pb2_grpc import DeliveryServiceServicer

log = structlog.get_logger(__name__)

#: of one CancelDeliveries call
_MOST_IDS: Final = 1000
#: as page_size: only the summary
_SUMMARY_ONLY: Final = -1
#: what is told of one item of a batch alone; anything else fails the call
_OF_ITEM: Final = (
    HandlerFailed, InvalidInput, KeyUnavailable, Overloaded, PermissionDenied, RequestIdReused,
)  # fmt: skip

_Checked = tuple[Submission, Place]


class DeliveryService(DeliveryServiceServicer):
    def __init__(
        self,
        settings: Settings,
        intake: Intake,
        producer: Producer,
        keys: KeyStore,
        lookup: Lookup,
        canceller: Canceller,
        pressure: Pressure,
        watchers: Watchers,
        limits: Limits,
        quota: Quota,
    ) -> None:
        self._limits = limits
        self._quota = quota
        self._settings = settings
        self._intake = intake
        self._producer = producer
        self._keys = keys
        self._lookup = lookup
        self._canceller = canceller
        self._pressure = pressure
        self._watchers = watchers

    @rpc
    async def QueueActivity(self, request: pb.QueueActivityRequest, context: Any) -> pb.QueueActivityResponse:
        return await self._accept(*await self._checked(request))

    @rpc
    async def QueueActivities(
        self, request: pb.QueueActivitiesRequest, context: Any
    ) -> pb.QueueActivitiesResponse:
        items, limit = request.requests, self._settings.max_batch_size
        if not items:
            raise InvalidInput("requests", "is empty")
        if len(items) > limit:
            raise InvalidInput("requests", f"has {len(items)} items; {limit} are allowed")
        name = request_name(request.request_id)
        checked = await asyncio.gather(
            *(self._checked(item, f"{name}#{index}" if name else "") for index, item in enumerate(items)),
            return_exceptions=True,
        )
        turns = []
        for index, item in enumerate(checked):
            if isinstance(item, BaseException) and not isinstance(item, _OF_ITEM):
                raise item
            names = () if isinstance(item, BaseException) else about(*item)
            turns.append(Turn(names, partial(self._accept_item, item, index)))
        return pb.QueueActivitiesResponse(results=await in_turn(turns))

    @rpc
    async def FanOutActivity(
        self, request: pb.FanOutActivityRequest, context: Any
    ) -> pb.FanOutActivityResponse:
        if not request.inboxes:
            raise InvalidInput("inboxes", "is empty")
        most = self._limits.max_fan_out(caller())
        if len(request.inboxes) > most:
            raise InvalidInput("inboxes", f"has {len(request.inboxes)} inboxes; {most} are allowed")
        submission = await self._intake.submission(request)
        origin = submission.message.origin
        self._pressure.check(submission.terms.priority)
        async with self._quota.room(origin, len(request.inboxes), caller()) as room:
            self._limits.deliveries(caller(), origin, len(request.inboxes))
            places, rejected, twice = await self._intake.places(request.inboxes)
            if submission.doubtful:
                await self._intake.check_repeated(submission, places, fan_out=True)
            accepted = duplicates = 0
            if places:
                if submission.key is not None:
                    await self._keys.ensure(submission.key, submission.in_s)
                accepted, duplicates = await self._producer.fan_out(
                    submission.message, places, submission.terms
                )
            room.taken = accepted
        ACCEPTED.inc(accepted)
        DUPLICATES.inc(duplicates + twice)
        REJECTED.inc(len(rejected))
        return pb.FanOutActivityResponse(
            accepted=accepted,
            duplicates=duplicates + twice,
            rejected=[
                pb.RejectedInbox(
                    index=r.index,
                    inbox=r.inbox[:2048],
                    error=item_error(r.error),
                )
                for r in rejected
            ],
            activity_id=submission.message.activity_id,
        )

    @rpc
    async def GetDelivery(self, request: pb.GetDeliveryRequest, context: Any) -> pb.GetDeliveryResponse:
        id = delivery_id(request.delivery_id)
        found = await self._lookup.find(id)
        if found is None:
            raise NotFound(f"there is no delivery {id}")
        return pb.GetDeliveryResponse(delivery=convert.delivery(found))

    @rpc
    async def ListDeliveries(
        self, request: pb.ListDeliveriesRequest, context: Any
    ) -> pb.ListDeliveriesResponse:
        if not request.activity_id:
            raise InvalidInput("activity_id", "is required")
        states = _states(request.states)
        response = pb.ListDeliveriesResponse()
        arguments = (request.activity_id, sorted(states))
        after = pages.decode(request.page_token, *arguments, read=_position)
        if after is None:
            summary = await self._lookup.summary(request.activity_id)
            response.summary.extend(
                pb.StateCount(state=types_pb2.DeliveryState.ValueType(state), count=n)
                for state, n in sorted(summary.items())
            )
            if not summary:
                raise NotFound("there is no delivery of this activity")
        if request.page_size == _SUMMARY_ONLY:
            return response
        size = pages.page_size(request.page_size)
        page = await self._lookup.page(request.activity_id, after, size + 1, states)
        response.deliveries.extend(convert.delivery(d) for d in page[:size])
        if len(page) > size:
            response.next_page_token = pages.encode(str(page[size - 1].id), *arguments)
        return response

    @rpc
    async def CancelDeliveries(
        self, request: pb.CancelDeliveriesRequest, context: Any
    ) -> pb.CancelDeliveriesResponse:
        selector, origins = request.WhichOneof("selector"), allowed_origins()
        if selector in ("activity_id", "ordering_key", "supersede_key") and not getattr(request, selector):
            raise InvalidInput(selector, "is empty")
        match selector:
            case "deliveries":
                ids = request.deliveries.delivery_ids
                if not 1 <= len(ids) <= _MOST_IDS:
                    raise InvalidInput(
                        "deliveries.delivery_ids", f"has {len(ids)} ids; 1 to {_MOST_IDS} are allowed"
                    )
                chosen = [delivery_id(id, f"deliveries.delivery_ids[{n}]") for n, id in enumerate(ids)]
                cancelled = await self._canceller.cancel(chosen, origins=origins)
            case "activity_id":
                cancelled = await self._canceller.cancel_activity(request.activity_id, origins=origins)
            case "host":
                host = host_name("host", request.host)
                cancelled = await self._canceller.cancel_host(host, origins=origins)
            case "ordering_key":
                cancelled = await self._canceller.cancel_ordered(request.ordering_key, origins=origins)
            case "supersede_key":
                cancelled = await self._canceller.cancel_replaced(request.supersede_key, origins=origins)
            case _:
                raise InvalidInput("selector", "is required: one of deliveries, activity_id, host, ...")
        log.info("cancelled", selector=selector, deliveries=cancelled.cancelled)
        return pb.CancelDeliveriesResponse(
            cancelled=cancelled.cancelled, in_flight=cancelled.in_flight, ended=cancelled.ended
        )

    @rpc_stream
    async def WatchOutcomes(
        self, request: pb.WatchOutcomesRequest, context: Any
    ) -> AsyncGenerator[pb.WatchOutcomesResponse, None]:
        takes = Filter(
            events=frozenset(_event(f"event_types[{i}]", n) for i, n in enumerate(request.event_types)),
            states=_states(request.states),
            activity_types=frozenset(request.activity_types),
            hosts=frozenset(host_name(f"hosts[{i}]", host) for i, host in enumerate(request.hosts)),
            origins=allowed_origins(),
        )
        async with aclosing(self._watchers.watch(request.cursor, takes)) as watched:
            async for seen in watched:
                yield convert.seen(seen.cursor, seen.entry)

    async def _checked(self, request: pb.QueueActivityRequest, request_id: str = "") -> _Checked:
        try:
            place = self._intake.place(request.inbox)
            submission = await self._intake.submission(request, request_id)
            if submission.doubtful:
                await self._intake.check_repeated(submission, [place], fan_out=False)
            return submission, place
        except InvalidInput:
            REJECTED.inc()
            raise

    async def _accept(self, submission: Submission, place: Place) -> pb.QueueActivityResponse:
        terms = submission.terms
        self._pressure.check(terms.priority)
        async with self._quota.room(submission.message.origin, 1, caller()) as room:
            self._limits.deliveries(caller(), submission.message.origin, 1)
            if submission.key is not None:
                await self._keys.ensure(submission.key, submission.in_s)
            queued = await self._producer.enqueue(submission.message, place, terms)
            room.taken = 0 if queued.duplicate else 1
        (DUPLICATES if queued.duplicate else ACCEPTED).inc()
        known = await self._lookup.find(queued.id) if queued.duplicate else None
        return pb.QueueActivityResponse(
            delivery=convert.accepted(queued.id, submission.message, place, terms)
            if known is None
            else convert.delivery(known),
            duplicate=queued.duplicate,
        )

    async def _accept_item(self, checked: _Checked | BaseException, index: int) -> pb.QueueActivityResult:
        try:
            if isinstance(checked, BaseException):
                raise checked
            return pb.QueueActivityResult(index=index, accepted=await self._accept(*checked))
        except _OF_ITEM as error:
            return pb.QueueActivityResult(index=index, error=item_error(error, f"requests[{index}]"))


def _event(field: str, number: int) -> EventType | None:
    """None for outcomes."""
    if number == pb.EVENT_TYPE_OUTCOME:
        return None
    try:
        return EventType(number)
    except ValueError:
        raise InvalidInput(field, f"{number} is not a type of event") from None


def _position(position: Any) -> DeliveryId:
    return DeliveryId.parse(pages.text(position))


def _states(numbers: Iterable[int]) -> frozenset[DeliveryState]:
    return frozenset(_state(f"states[{i}]", number) for i, number in enumerate(numbers))


def _state(field: str, number: int) -> DeliveryState:
    try:
        return DeliveryState(number)
    except ValueError:
        raise InvalidInput(field, f"{number} is not a state") from None
