"""A server of fedsvc's contract that does as a test tells it, in threads of its own: for callers without an
event loop, and for what a real server does only on bad days."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc import StatusCode

from fedsvc.v1 import delivery_service_pb2 as pb
from fedsvc.v1 import operations_service_pb2 as operations_pb
from fedsvc.v1 import types_pb2
from fedsvc.v1.delivery_service_pb2_grpc import add_DeliveryServiceServicer_to_server
from fedsvc.v1.operations_service_pb2_grpc import add_OperationsServiceServicer_to_server


class Refused(Exception):
    """Ends a call with this code, reason and, if `field` is given, a violation of it."""

    def __init__(self, code: StatusCode, text: str, *, reason: str = "", field: str = "") -> None:
        super().__init__(text)
        self.code, self.text, self.reason, self.field = code, text, reason, field

    def end(self, context: Any) -> None:
        status = status_pb2.Status(code=self.code.value[0], message=self.text)
        status.details.add().Pack(error_details_pb2.ErrorInfo(reason=self.reason))
        if self.field:
            violation = error_details_pb2.BadRequest.FieldViolation(field=self.field, description=self.text)
            status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
        context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
        context.abort(self.code, self.text)


class Scripted:
    """Takes everything, once for each request id, and remembers it. `judge` may raise Refused for a request
    of QueueActivity, an item of QueueActivities, or FanOutActivity."""

    def __init__(self) -> None:
        self.target = ""
        self.calls: list[Any] = []
        #: request id -> what was accepted under it, in order
        self.accepted: dict[str, Any] = {}
        self.judge: Callable[[Any], None] = lambda request: None
        self.events: list[pb.WatchOutcomesResponse] = []
        #: WatchOutcomes ends so, after so many events; None goes on
        self.breaks_after: int | None = None
        self.hosts: dict[str, operations_pb.Host] = {}
        self.known: list[types_pb2.Delivery] = []
        self.tokens: list[str] = []
        self._lock = threading.Lock()

    def _take(self, request: Any) -> bool:
        """Whether it was accepted before."""
        self.judge(request)
        with self._lock:
            before = self.accepted.setdefault(request.request_id, request)
        return before is not request

    def _begin(self, request: Any, context: Any) -> None:
        self.tokens += [v for k, v in context.invocation_metadata() if k == "authorization"]
        with self._lock:
            self.calls.append(request)

    def QueueActivity(self, request: Any, context: Any) -> Any:
        self._begin(request, context)
        try:
            duplicate = self._take(request)
        except Refused as refused:
            refused.end(context)
        return self._answer(request, duplicate)

    def QueueActivities(self, request: Any, context: Any) -> Any:
        self._begin(request, context)
        results = []
        for index, item in enumerate(request.requests):
            try:
                duplicate = self._take(item)
                results.append(pb.QueueActivityResult(index=index, accepted=self._answer(item, duplicate)))
            except Refused as refused:
                if refused.code is StatusCode.UNAVAILABLE:
                    refused.end(context)
                code = getattr(code_pb2, refused.code.name)
                error = types_pb2.ItemError(code=code, reason=refused.reason, message=refused.text)
                error.field = f"requests[{index}].{refused.field}"
                results.append(pb.QueueActivityResult(index=index, error=error))
        return pb.QueueActivitiesResponse(results=results)

    def FanOutActivity(self, request: Any, context: Any) -> Any:
        self._begin(request, context)
        try:
            duplicate = self._take(request)
        except Refused as refused:
            refused.end(context)
        count = len(request.inboxes)
        rejected = [
            pb.RejectedInbox(
                index=n,
                inbox=inbox,
                error=types_pb2.ItemError(
                    reason="INVALID_INBOX", message="is no inbox", field=f"inboxes[{n}]"
                ),
            )
            for n, inbox in enumerate(request.inboxes)
            if not inbox.startswith("http")
        ]
        fresh = 0 if duplicate else count - len(rejected)
        return pb.FanOutActivityResponse(
            accepted=fresh, duplicates=count - len(rejected) - fresh, rejected=rejected, activity_id="a"
        )

    def ListDeliveries(self, request: Any, context: Any) -> Any:
        self._begin(request, context)
        found = [d for d in self.known if d.activity_id == request.activity_id]
        if not found:
            Refused(StatusCode.NOT_FOUND, "there is no such activity").end(context)
        return pb.ListDeliveriesResponse(deliveries=found)

    def WatchOutcomes(self, request: Any, context: Any) -> Iterator[Any]:
        self._begin(request, context)
        position = int(request.cursor or 0)
        yield pb.WatchOutcomesResponse(cursor=str(position), heartbeat=True)
        sent = 0
        while context.is_active():
            for event in self.events[position:]:
                if self.breaks_after is not None and sent >= self.breaks_after:
                    context.abort(StatusCode.UNAVAILABLE, "restarting")
                position, sent = position + 1, sent + 1
                event.cursor = str(position)
                yield event
            self._ended.wait(0.02)

    def GetHost(self, request: Any, context: Any) -> Any:
        self._begin(request, context)
        if request.host not in self.hosts:
            Refused(StatusCode.NOT_FOUND, "there is no such host").end(context)
        return operations_pb.GetHostResponse(host=self.hosts[request.host])

    def GetQueueStats(self, request: Any, context: Any) -> Any:
        stats = operations_pb.GetQueueStatsResponse(accepted=len(self.accepted), pending=3, retry=1)
        urgent = stats.priorities.add(priority=types_pb2.PRIORITY_URGENT, ready=2, in_flight=1)
        urgent.oldest_age.FromMilliseconds(1500)
        return stats

    @staticmethod
    def _answer(request: Any, duplicate: bool) -> Any:
        delivery = types_pb2.Delivery(delivery_id=f"1-{abs(hash(request.request_id))}", inbox=request.inbox)
        return pb.QueueActivityResponse(delivery=delivery, duplicate=duplicate)

    def __getattr__(self, name: str) -> Any:
        """What else the services have."""
        if not name[0].isupper():
            raise AttributeError(name)

        def unimplemented(request: Any, context: Any) -> None:
            context.abort(StatusCode.UNIMPLEMENTED, name)

        return unimplemented

    _ended = threading.Event()


@contextmanager
def scripted(script: Scripted | None = None) -> Iterator[Scripted]:
    script = script or Scripted()
    services: Any = script
    server = grpc.server(ThreadPoolExecutor(16))
    add_DeliveryServiceServicer_to_server(services, server)
    add_OperationsServiceServicer_to_server(services, server)
    script.target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield script
    finally:
        server.stop(0).wait(10)
