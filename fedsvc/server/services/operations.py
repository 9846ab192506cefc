"""OperationsService: shows the queue to operators."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import structlog

from fedsvc.archive.archive import Archive
from fedsvc.config import Settings
from fedsvc.domain.delivery import DeliveryState
from fedsvc.errors import InvalidInput, NotFound
from fedsvc.queue.cleanup import Cleanup
from fedsvc.queue.hosts import FOR_EVER, HostPolicy, Hosts
from fedsvc.queue.link import Link
from fedsvc.queue.reader import Reader
from fedsvc.queue.server_info import server_info
from fedsvc.queue.stats import StatsReader
from fedsvc.server import convert, pages
from fedsvc.server.caller import allowed_origins
from fedsvc.server.errors import rpc
from fedsvc.server.intake import delivery_id, host_name
from fedsvc.server.unbuilt import unbuilt, unbuilt_stream
from fedsvc.v1 import operations_service_pb2 as pb
from fedsvc.v1.operations_service_pb2_grpc import OperationsServiceServicer

log = structlog.get_logger(__name__)

#: characters
_MAX_REASON: Final = 512


class OperationsService(OperationsServiceServicer):
    WatchQueueStats = unbuilt_stream("WatchQueueStats")
    ReplayDeadLetters = unbuilt("ReplayDeadLetters")
    PurgeDeadLetters = unbuilt("PurgeDeadLetters")
    GetOperation = unbuilt("GetOperation")
    ListOperations = unbuilt("ListOperations")
    ListHosts = unbuilt("ListHosts")
    CreateSchedule = unbuilt("CreateSchedule")
    GetSchedule = unbuilt("GetSchedule")
    ListSchedules = unbuilt("ListSchedules")
    UpdateSchedule = unbuilt("UpdateSchedule")
    PauseSchedule = unbuilt("PauseSchedule")
    ResumeSchedule = unbuilt("ResumeSchedule")
    DeleteSchedule = unbuilt("DeleteSchedule")
    ListAuditEvents = unbuilt("ListAuditEvents")

    def __init__(
        self,
        link: Link,
        stats: StatsReader,
        reader: Reader,
        archive: Archive,
        hosts: Hosts,
        cleanup: Cleanup,
        settings: Settings,
    ) -> None:
        self._settings = settings
        self._hosts = hosts
        self._cleanup = cleanup
        self._link = link
        self._stats = stats
        self._reader = reader
        self._archive = archive

    @rpc
    async def GetQueueStats(self, request: pb.GetQueueStatsRequest, context: Any) -> pb.GetQueueStatsResponse:
        stats, info = await asyncio.gather(self._stats.read(), server_info(self._link))
        return convert.queue_stats(stats, info, allowed_origins())

    @rpc
    async def GetRetryStats(self, request: pb.GetRetryStatsRequest, context: Any) -> pb.GetRetryStatsResponse:
        return convert.retry_stats(await self._stats.read_retries())

    @rpc
    async def GetMemoryStatus(
        self, request: pb.GetMemoryStatusRequest, context: Any
    ) -> pb.GetMemoryStatusResponse:
        return convert.memory_status(await server_info(self._link), self._settings)

    @rpc
    async def ForceCleanup(self, request: pb.ForceCleanupRequest, context: Any) -> pb.ForceCleanupResponse:
        freed, freed_bytes = await self._cleanup.run(aggressive=request.aggressive)
        log.info("cleaned_up", aggressive=request.aggressive, bytes=freed_bytes, **freed)
        return pb.ForceCleanupResponse(
            freed=[pb.MemoryCategory(name=name, entries=n) for name, n in freed.items()],
            freed_bytes=freed_bytes,
        )

    @rpc
    async def GetHost(self, request: pb.GetHostRequest, context: Any) -> pb.GetHostResponse:
        state = await self._hosts.get(host_name("host", request.host))
        return pb.GetHostResponse(host=convert.host(state))

    @rpc
    async def PauseHost(self, request: pb.PauseHostRequest, context: Any) -> pb.PauseHostResponse:
        host = host_name("host", request.host)
        if len(request.reason) > _MAX_REASON or not request.reason.isprintable():
            raise InvalidInput("reason", f"is longer than {_MAX_REASON} characters or has control characters")
        duration_ms = FOR_EVER
        if request.HasField("duration"):
            duration_ms = request.duration.ToMilliseconds()
            if duration_ms <= 0:
                raise InvalidInput("duration", "must be positive")
        state = await self._hosts.pause(host, duration_ms=duration_ms, reason=request.reason)
        log.info("host_paused", host=host, reason=request.reason)
        return pb.PauseHostResponse(host=convert.host(state))

    @rpc
    async def ResumeHost(self, request: pb.ResumeHostRequest, context: Any) -> pb.ResumeHostResponse:
        host = host_name("host", request.host)
        state = await self._hosts.resume(host)
        log.info("host_resumed", host=host)
        return pb.ResumeHostResponse(host=convert.host(state))

    @rpc
    async def UpdateHostPolicy(
        self, request: pb.UpdateHostPolicyRequest, context: Any
    ) -> pb.UpdateHostPolicyResponse:
        host, policy = host_name("host", request.host), request.policy
        for field, value, most in (
            ("max_in_flight", policy.max_in_flight, 1000),
            ("rate_per_second", policy.rate_per_second, 1e6),
            ("burst", policy.burst, 1_000_000),
        ):
            if not 0 <= value <= most:
                raise InvalidInput(f"policy.{field}", f"must be between 0 and {most:g}")
        state = await self._hosts.set_policy(
            host, HostPolicy(policy.max_in_flight, policy.rate_per_second, policy.burst)
        )
        log.info("host_policy", host=host, policy=state.policy._asdict())
        return pb.UpdateHostPolicyResponse(host=convert.host(state))

    @rpc
    async def NotifyHostSeen(
        self, request: pb.NotifyHostSeenRequest, context: Any
    ) -> pb.NotifyHostSeenResponse:
        return pb.NotifyHostSeenResponse(probing=await self._hosts.seen(host_name("host", request.host)))

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
