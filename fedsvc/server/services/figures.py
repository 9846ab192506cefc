"""The part of OperationsService that tells figures of the whole queue."""

from __future__ import annotations

import asyncio
from typing import Any

from fedsvc.config import Settings
from fedsvc.queue.cleanup import Cleanup
from fedsvc.queue.link import Link
from fedsvc.queue.server_info import server_info
from fedsvc.queue.stats import StatsReader
from fedsvc.server import convert
from fedsvc.server.audit import Audit
from fedsvc.server.caller import allowed_origins
from fedsvc.server.errors import rpc
from fedsvc.v1 import operations_service_pb2 as pb


class Figures:
    def __init__(
        self, link: Link, stats: StatsReader, cleanup: Cleanup, settings: Settings, audit: Audit
    ) -> None:
        self._link = link
        self._stats = stats
        self._cleanup = cleanup
        self._settings = settings
        self._audit = audit

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
        await self._audit.record("queue.cleanup", aggressive=request.aggressive, bytes=freed_bytes, **freed)
        return pb.ForceCleanupResponse(
            freed=[pb.MemoryCategory(name=name, entries=n) for name, n in freed.items()],
            freed_bytes=freed_bytes,
        )
