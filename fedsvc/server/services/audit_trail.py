"""The part of OperationsService that tells who changed what."""

from __future__ import annotations

from typing import Any, Final

from fedsvc.archive.audit_log import AuditLog
from fedsvc.server import convert, pages
from fedsvc.server.errors import rpc
from fedsvc.server.fields import plain_text, time_ms
from fedsvc.v1 import operations_service_pb2 as pb

#: characters of a name of a caller or an action, at most
_LONGEST: Final = 64


class AuditTrail:
    def __init__(self, events: AuditLog) -> None:
        self._events = events

    @rpc
    async def ListAuditEvents(
        self, request: pb.ListAuditEventsRequest, context: Any
    ) -> pb.ListAuditEventsResponse:
        for field in ("principal", "action"):
            # No other is in the audit, and PostgreSQL refuses to look for some.
            plain_text(field, getattr(request, field), _LONGEST)
        size = pages.page_size(request.page_size)
        start_ms, end_ms = (time_ms(request, field) for field in ("start_time", "end_time"))
        arguments = (request.principal, request.action, start_ms, end_ms)
        before = pages.decode(request.page_token, *arguments, read=pages.number_and_text)
        events = await self._events.list(
            principal=request.principal,
            action=request.action,
            start_ms=start_ms,
            end_ms=end_ms,
            before=before,
            limit=size + 1,
        )
        response = pb.ListAuditEventsResponse(audit_events=[convert.audit_event(e) for e in events[:size]])
        if len(events) > size:
            last = events[size - 1]
            response.next_page_token = pages.encode([last.time_ms, last.id], *arguments)
        return response
