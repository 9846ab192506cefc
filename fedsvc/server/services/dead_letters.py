"""The part of OperationsService that shows dead letters."""

from __future__ import annotations

from typing import Any

from fedsvc.domain.delivery import DeliveryState
from fedsvc.errors import InvalidInput, NotFound
from fedsvc.queue.reader import Reader
from fedsvc.server import convert, pages
from fedsvc.server.caller import allowed_origins
from fedsvc.server.errors import rpc
from fedsvc.server.intake import delivery_id
from fedsvc.v1 import operations_service_pb2 as pb


class DeadLetters:
    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    @rpc
    async def ListDeadLetters(
        self, request: pb.ListDeadLettersRequest, context: Any
    ) -> pb.ListDeadLettersResponse:
        if request.HasField("filter") and request.filter.ListFields():
            raise InvalidInput("filter", "is not available in this version")
        size = pages.page_size(request.page_size)
        position = pages.decode(request.page_token) or 0
        letters = await self._reader.dead_letters(
            before=int(position), limit=size + 1, origins=allowed_origins()
        )
        response = pb.ListDeadLettersResponse(dead_letters=[convert.delivery(d) for d in letters[:size]])
        if len(letters) > size:
            response.next_page_token = pages.encode(letters[size - 1].outcome)
        return response

    @rpc
    async def GetDeadLetter(self, request: pb.GetDeadLetterRequest, context: Any) -> pb.GetDeadLetterResponse:
        id = delivery_id(request.delivery_id)
        found = await self._reader.get(id, allowed_origins())
        if found is None or found.state is not DeliveryState.DEAD:
            raise NotFound(f"there is no dead letter {id}")
        return pb.GetDeadLetterResponse(
            dead_letter=convert.delivery(found), activity=await self._reader.body(id) or b""
        )
