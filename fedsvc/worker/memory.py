"""How full Redis is, as the lifecycle loops go by: looked at once a second."""

from __future__ import annotations

from fedsvc.config import Settings
from fedsvc.queue.server_info import ServerInfo


class MemoryWatch:
    def __init__(self, settings: Settings) -> None:
        self._warning = settings.memory_warning
        self._critical = settings.memory_critical
        self.used = 0.0

    def note(self, info: ServerInfo) -> None:
        """What Redis says of itself now."""
        self.used = info.memory_share

    @property
    def short(self) -> bool:
        """Past the first threshold: what can be forgotten or put elsewhere, is."""
        return self.used >= self._warning

    @property
    def critical(self) -> bool:
        """Past the second."""
        return self.used >= self._critical
