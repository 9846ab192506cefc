"""Channels to a server, with the services behind them."""

from __future__ import annotations

import asyncio
import os
import weakref
from typing import Any

import grpc
import grpc.aio

from fedsvc_client._channel import TLS, channel_options
from fedsvc_client._exceptions import FedsvcError
from fedsvc_client._proto.delivery_service_pb2_grpc import DeliveryServiceStub
from fedsvc_client._proto.key_service_pb2_grpc import KeyServiceStub
from fedsvc_client._proto.operations_service_pb2_grpc import OperationsServiceStub


class _Services:
    def __init__(self, channel: Any) -> None:
        self.channel = channel
        self.delivery = DeliveryServiceStub(channel)
        self.operations = OperationsServiceStub(channel)
        self.keys = KeyServiceStub(channel)


class Connection(_Services):
    """Of one process."""

    def __init__(self, target: str, tls: TLS | None, timeout: float) -> None:
        """`timeout`: seconds that a call takes at most."""
        self.pid = os.getpid()
        options = channel_options(target, timeout)
        if tls is None:
            super().__init__(grpc.insecure_channel(target, options=options))
        else:
            super().__init__(grpc.secure_channel(target, tls.credentials(), options=options))


def owner() -> tuple[int, int]:
    return os.getpid(), id(asyncio.get_running_loop())


#: those of asyncio that are open in this process
_open: weakref.WeakSet[AsyncConnection] = weakref.WeakSet()
#: whether some were when it forked from another: gRPC's asyncio is then broken here, and ends the process
_inherited = False


def _after_fork() -> None:
    global _inherited
    _inherited = _inherited or bool(_open)


os.register_at_fork(after_in_child=_after_fork)


class AsyncConnection(_Services):
    """Of one process and event loop. Raises FedsvcError in a process in which there cannot be any."""

    def __init__(self, target: str, tls: TLS | None, timeout: float) -> None:
        """`timeout`: seconds that a call takes at most."""
        if _inherited:
            raise FedsvcError(
                "this process forked from one that had an AsyncFedsvcClient open, after which gRPC can make "
                "none here: close that before the fork, or use FedsvcClient"
            )
        self.owner, self.loop = owner(), asyncio.get_running_loop()
        options = channel_options(target, timeout)
        if tls is None:
            super().__init__(grpc.aio.insecure_channel(target, options=options))
        else:
            super().__init__(grpc.aio.secure_channel(target, tls.credentials(), options=options))
        _open.add(self)

    async def close(self) -> None:
        await self.channel.close()
        _open.discard(self)


class AsyncConnections:
    """Of one client: one for each of the event loops that use it, of which several threads may run some."""

    def __init__(self, target: str, tls: TLS | None, timeout: float) -> None:
        """`timeout`: seconds that a call takes at most."""
        self._how = (target, tls, timeout)
        # A connection holds its loop, so that no other gets its id.
        self._held: dict[tuple[int, int], AsyncConnection] = {}

    def get(self) -> AsyncConnection:
        """That of this process and loop. Raises FedsvcError if there cannot be any."""
        held = self._held.get(owner())
        if held is None:
            held = AsyncConnection(*self._how)
            for key, other in list(self._held.items()):  # a thread may be about the same
                if other.loop.is_closed():  # nobody can use it any more, nor close it
                    self._held.pop(key, None)
            self._held[held.owner] = held
        return held

    async def close(self) -> None:
        """That of this loop; the others are forgotten, and end with what is under way on them."""
        own = self._held.pop(owner(), None)
        self._held.clear()
        if own is not None:
            await own.close()
