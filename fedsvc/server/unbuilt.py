"""RPCs of the contract that are not built yet answer UNIMPLEMENTED, in words."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from google.rpc import code_pb2, status_pb2

from fedsvc.server.errors import abort


def unbuilt(name: str) -> Any:
    """A method that takes one request and gives one response."""

    async def refuse(self: Any, request: Any, context: Any) -> None:
        await abort(context, _status(name))

    return refuse


def unbuilt_stream(name: str) -> Any:
    """A method that gives many responses."""

    async def refuse(self: Any, request: Any, context: Any) -> AsyncIterator[Any]:
        if context is not None:  # always; it makes this a generator
            await abort(context, _status(name))
        yield

    return refuse


def _status(name: str) -> status_pb2.Status:
    return status_pb2.Status(code=code_pb2.UNIMPLEMENTED, message=f"{name} is not available in this version")
