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
        self.owner = owner()
        options = channel_options(target, timeout)
        if tls is None:
            super().__init__(grpc.aio.insecure_channel(target, options=options))
        else:
            super().__init__(grpc.aio.secure_channel(target, tls.credentials(), options=options))
        _open.add(self)

    async def close(self) -> None:
        await self.channel.close()
        _open.discard(self)
