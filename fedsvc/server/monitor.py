"""Whether the server can do its work, and how full Redis is: asked of Redis itself, once a second.

Health and readiness follow this, not the port.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from fedsvc.config import Settings
from fedsvc.errors import ConfigurationError, FedsvcError
from fedsvc.queue.durability import check_durability
from fedsvc.queue.format import record_format
from fedsvc.queue.keys import Keys
from fedsvc.queue.link import Link
from fedsvc.queue.server_info import ServerInfo, record_partitions, server_info
from fedsvc.server.pressure import Pressure

log = structlog.get_logger(__name__)

#: as transitions write: also if Redis is full, but not if its disk is
_WRITES: Final = """#!lua flags=allow-oom
return redis.call('SET', KEYS[1], '1', 'PX', 60000)
"""


class Monitor:
    #: seconds between two looks
    EVERY: Final = 1.0
    #: seconds within which Redis must answer
    DEADLINE: Final = 2.0

    def __init__(
        self,
        settings: Settings,
        link: Link,
        keys: Keys,
        pressure: Pressure,
        changed: Callable[[bool], None],
    ) -> None:
        """`changed` is told when the server begins or ceases to be able to serve."""
        self._pressure = pressure
        self._checked = False
        self._settings = settings
        #: that must have a call before it is answered
        self._replicas = settings.durability_replicas if settings.durability == "replicated" else 0
        self._link = link
        self._keys = keys
        self._changed = changed
        self.problem = "not started"

    @property
    def serving(self) -> bool:
        return not self.problem

    async def run(self) -> None:
        """Look until cancelled. Raises ConfigurationError if the queue is not ours, or not as safe as it must
        be."""
        while True:
            await self.look()
            await asyncio.sleep(self.EVERY)

    async def look(self) -> None:
        try:
            async with asyncio.timeout(self.DEADLINE):
                await record_partitions(self._link, self._keys, self._settings)
                await record_format(self._link, self._keys)
                await self._link.call("EVAL", _WRITES, 1, self._keys.written)
                if not self._checked:
                    await check_durability(self._link, self._settings)
                    self._checked = True
                info = await server_info(self._link)
                self._pressure.note(info)
            problem = _problem(info, self._replicas)
        except ConfigurationError:
            raise
        except (FedsvcError, TimeoutError) as error:
            problem = str(error) or "Redis does not answer in time"
        was, self.problem = self.problem, problem
        if bool(was) != bool(problem):
            if problem:
                log.warning("not_serving", problem=problem)
            else:
                log.info("serving")
            self._changed(not problem)


def _problem(info: ServerInfo, replicas: int) -> str:
    """Why a master takes no writes that count, though the one that was asked does."""
    if not info.master:
        return "Redis is a replica, which takes no writes"
    if info.replicas < replicas:
        return f"Redis has {info.replicas} of the {replicas} replicas that must have a call"
    return "" if info.aof_written else "Redis cannot write its append-only file"
