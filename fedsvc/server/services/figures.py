"""The part of OperationsService that tells figures of the whole queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Any

from fedsvc.config import Settings
from fedsvc.errors import FedsvcError, InvalidInput
from fedsvc.queue.cleanup import Cleanup
from fedsvc.queue.link import Link
from fedsvc.queue.memory_usage import MemoryUsage
from fedsvc.queue.server_info import ServerInfo, server_info
from fedsvc.queue.stats import QueueStats, StatsReader
from fedsvc.server import convert
from fedsvc.server.audit import Audit
from fedsvc.server.caller import allowed_origins
from fedsvc.server.errors import rpc, rpc_stream
from fedsvc.server.fields import duration_ms
from fedsvc.server.places import Places
from fedsvc.server.stats_feed import StatsFeed
from fedsvc.v1 import operations_service_pb2 as pb


class Figures:
    def __init__(
        self,
        link: Link,
        stats: StatsReader,
        usage: MemoryUsage,
        cleanup: Cleanup,
        settings: Settings,
        audit: Audit,
        places: Places,
        stopping: asyncio.Event,
    ) -> None:
        self._link = link
        self._stats = stats
        self._usage = usage
        self._feed = StatsFeed(places, self._read, stopping)
        self._cleanup = cleanup
        self._settings = settings
        self._audit = audit

    @rpc
    async def GetQueueStats(self, request: pb.GetQueueStatsRequest, context: Any) -> pb.GetQueueStatsResponse:
        return self._told(await self._read())

    @rpc_stream
    async def WatchQueueStats(
        self, request: pb.WatchQueueStatsRequest, context: Any
    ) -> AsyncGenerator[pb.WatchQueueStatsResponse, None]:
        interval_ms = duration_ms(request, "interval") or StatsFeed.DEFAULT_MS
        if interval_ms < StatsFeed.SHORTEST_MS:
            raise InvalidInput("interval", f"is shorter than {StatsFeed.SHORTEST_MS} ms")
        async with aclosing(self._feed.watch(interval_ms)) as figures:
            async for read in figures:
                yield pb.WatchQueueStatsResponse(stats=self._told(read))

    @rpc
    async def GetRetryStats(self, request: pb.GetRetryStatsRequest, context: Any) -> pb.GetRetryStatsResponse:
        return convert.retry_stats(await self._stats.read_retries())

    @rpc
    async def GetMemoryStatus(
        self, request: pb.GetMemoryStatusRequest, context: Any
    ) -> pb.GetMemoryStatusResponse:
        info = await server_info(self._link)
        usage = []
        with suppress(FedsvcError):  # a server or an account that does not let us ask: the rest is known
            usage = await self._usage.read()
        return convert.memory_status(info, self._settings, usage)

    @rpc
    async def ForceCleanup(self, request: pb.ForceCleanupRequest, context: Any) -> pb.ForceCleanupResponse:
        freed, freed_bytes = await self._cleanup.run(aggressive=request.aggressive)
        await self._audit.record("queue.cleanup", aggressive=request.aggressive, bytes=freed_bytes, **freed)
        return pb.ForceCleanupResponse(
            freed=[pb.MemoryCategory(name=name, entries=n) for name, n in freed.items()],
            freed_bytes=freed_bytes,
        )

    async def _read(self) -> tuple[QueueStats, ServerInfo]:
        return await asyncio.gather(self._stats.read(), server_info(self._link))

    def _told(self, read: tuple[QueueStats, ServerInfo]) -> pb.GetQueueStatsResponse:
        """For the caller that is being served."""
        return convert.queue_stats(*read, self._settings, allowed_origins())
