"""RPCs of the contract that are not built yet answer UNIMPLEMENTED, in words."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final, TypeVar

from google.rpc import code_pb2, status_pb2

from fedsvc.server.errors import abort

_STREAMS: Final = frozenset({"WatchOutcomes", "WatchQueueStats"})
Servicer = TypeVar("Servicer", bound=type)


def unbuilt(servicer: Servicer) -> Servicer:
    """Class decorator: replaces the methods of the generated base that `servicer` does not define."""
    base = servicer.__mro__[1]
    for name in vars(base):
        if name[0].isupper() and name not in vars(servicer):
            setattr(servicer, name, _stream(name) if name in _STREAMS else _unary(name))
    return servicer


def _status(name: str) -> status_pb2.Status:
    return status_pb2.Status(code=code_pb2.UNIMPLEMENTED, message=f"{name} is not available in this version")


def _unary(name: str) -> Any:
    async def refuse(self: Any, request: Any, context: Any) -> None:
        await abort(context, _status(name))

    return refuse


def _stream(name: str) -> Any:
    async def refuse(self: Any, request: Any, context: Any) -> AsyncIterator[Any]:
        await abort(context, _status(name))
        yield  # makes it a generator

    return refuse
