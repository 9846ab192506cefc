"""For services that stand for one with more methods than a test needs."""

from __future__ import annotations

from typing import Any

import grpc


async def unbuilt(request: Any, context: Any) -> None:
    """A method that is not there."""
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "not here")
