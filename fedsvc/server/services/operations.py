"""OperationsService: shows the queue to operators."""

from __future__ import annotations

import asyncio
from typing import Any

from fedsvc.archive.archive import Archive
from fedsvc.domain.delivery import DeliveryState
from fedsvc.errors import InvalidInput, NotFound
from fedsvc.queue.link import Link
from fedsvc.queue.reader import Reader
from fedsvc.queue.server_info import server_info
from fedsvc.queue.stats import StatsReader
from fedsvc.server import convert, pages
from fedsvc.server.errors import rpc
from fedsvc.server.intake import delivery_id
from fedsvc.server.unbuilt import unbuilt, unbuilt_stream
from fedsvc.v1 import operations_service_pb2 as pb
from fedsvc.v1.operations_service_pb2_grpc import OperationsServiceServicer


class OperationsService(OperationsServiceServicer):
    WatchQueueStats = unbuilt_stream("WatchQueueStats")
    ForceCleanup = unbuilt("ForceCleanup")
    ReplayDeadLetters = unbuilt("ReplayDeadLetters")
    PurgeDeadLetters = unbuilt("PurgeDeadLetters")
    GetOperation = unbuilt("GetOperation")
    ListOperations = unbuilt("ListOperations")
    ListHosts = unbuilt("ListHosts")
    GetHost = unbuilt("GetHost")
    PauseHost = unbuilt("PauseHost")
    ResumeHost = unbuilt("ResumeHost")
    UpdateHostPolicy = unbuilt("UpdateHostPolicy")
    NotifyHostSeen = unbuilt("NotifyHostSeen")
    CreateSchedule = unbuilt("CreateSchedule")
    GetSchedule = unbuilt("GetSchedule")
    ListSchedules = unbuilt("ListSchedules")
    UpdateSchedule = unbuilt("UpdateSchedule")
    PauseSchedule = unbuilt("PauseSchedule")
    ResumeSchedule = unbuilt("ResumeSchedule")
    DeleteSchedule = unbuilt("DeleteSchedule")
    ListAuditEvents = unbuilt("ListAuditEvents")

    def __init__(self, link: Link, stats: StatsReader, reader: Reader, archive: Archive) -> None:
        self._link = link
        self._stats = stats
        self._reader = reader
        self._archive = archive

    @rpc
    async def GetQueueStats(self, request: pb.GetQueueStatsRequest, context: Any) -> pb.GetQueueStatsResponse:
        stats, info = await asyncio.gather(self._stats.read(), server_info(self._link))
        return convert.queue_stats(stats, info)

    @rpc
    async def GetRetryStats(self, request: pb.GetRetryStatsRequest, context: Any) -> pb.GetRetryStatsResponse:
        return convert.retry_stats(await self._stats.read_retries())

    @rpc
    async def GetMemoryStatus(
        self, request: pb.GetMemoryStatusRequest, context: Any
    ) -> pb.GetMemoryStatusResponse:
        return convert.memory_status(await server_info(self._link))

    @rpc
    async def ListDeadLetters(
        self, request: pb.ListDeadLettersRequest, context: Any
    ) -> pb.ListDeadLettersResponse:
        if request.HasField("filter") and request.filter.ListFields():
            raise InvalidInput("filter", "is not available in this version")
        size = pages.page_size(request.page_size)
        position = pages.decode(request.page_token) or 0
        letters = await self._reader.dead_letters(before=int(position), limit=size + 1)
        response = pb.ListDeadLettersResponse(dead_letters=[convert.delivery(d) for d in letters[:size]])
        if len(letters) > size:
            response.next_page_token = pages.encode(letters[size - 1].outcome)
        return response

    @rpc
    async def GetDeadLetter(self, request: pb.GetDeadLetterRequest, context: Any) -> pb.GetDeadLetterResponse:
        id = delivery_id(request.delivery_id)
        found = await self._reader.get(id)
        if found is None or found.state is not DeliveryState.DEAD:
            raise NotFound(f"there is no dead letter {id}")
        return pb.GetDeadLetterResponse(
            dead_letter=convert.delivery(found), activity=await self._reader.body(id) or b""
        )
