"""What is kept of who changed what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class AuditEvent:
    #: time and chance, so that ids are in the order of time and no two are alike
    id: str
    #: milliseconds since the epoch
    time_ms: int
    #: name of the caller
    principal: str
    #: such as `host.pause`
    action: str
    #: what it was done to, as a host or a key id; empty for the whole queue
    subject: str
    #: more about it; no secrets
    details: Mapping[str, Any]
