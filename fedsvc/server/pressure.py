"""Backpressure: as Redis fills up, new work is refused by priority, bulk first. What was accepted is never
dropped; the last part of the memory belongs to finishing it.
"""

from __future__ import annotations

from typing import Final

import structlog

from fedsvc.config import Settings
from fedsvc.domain.delivery import Priority
from fedsvc.errors import Overloaded
from fedsvc.queue.server_info import ServerInfo

log = structlog.get_logger(__name__)

#: of what is left above FEDSVC_MEMORY_CRITICAL: where each priority begins to be refused
_PART: Final = {Priority.BULK: 0.0, Priority.NORMAL: 0.5, Priority.URGENT: 0.8}
#: seconds after which to ask again
_RETRY_AFTER_S: Final = {Priority.BULK: 60, Priority.NORMAL: 15, Priority.URGENT: 5}


class Pressure:
    def __init__(self, settings: Settings) -> None:
        self._critical = settings.memory_critical
        self._used = 0.0

    def note(self, info: ServerInfo) -> None:
        """What Redis says of itself now."""
        was_critical = self._used >= self._critical
        self._used = used = info.memory_share
        if not was_critical and used >= self._critical:
            log.warning("memory_critical", used=round(used, 3))
        elif was_critical and used < self._critical:
            log.info("memory_relieved", used=round(used, 3))

    def check(self, priority: Priority) -> None:
        """Raises Overloaded if there is no room for new work of this priority."""
        if self._used >= self._critical + (1 - self._critical) * _PART[priority]:
            raise Overloaded(
                f"Redis is {self._used:.0%} full: no new {priority.name.lower()} deliveries for now",
                _RETRY_AFTER_S[priority],
            )
