"""What every line of the log says that is written while a call is served."""

from __future__ import annotations

from typing import Any

import structlog

from fedsvc.server.caller import Caller
from fedsvc.server.fields import MAX_REQUEST_ID


def bind(method: str, known: Caller | None, request: Any) -> None:
    """From here on, lines of this task say which method is served, for whom, and under which request id."""
    told = {"rpc": method.rpartition("/")[2], "caller": known.name if known is not None else ""}
    if request_id := getattr(request, "request_id", ""):
        told["request_id"] = request_id[:MAX_REQUEST_ID]  # it is checked later
    structlog.contextvars.bind_contextvars(**told)
