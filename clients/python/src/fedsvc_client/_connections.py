"""Channels to a server, with the services behind them."""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from contextlib import suppress
from typing import Any

import grpc
import grpc.aio

from fedsvc_client._channel import TLS, channel_options, stamps_of
from fedsvc_client._exceptions import ConfigurationError, FedsvcError
from fedsvc_client._proto.delivery_service_pb2_grpc import DeliveryServiceStub
from fedsvc_client._proto.key_service_pb2_grpc import KeyServiceStub
from fedsvc_client._proto.operations_service_pb2_grpc import OperationsServiceStub


class _Services:
    def __init__(self, channel: Any, tls: TLS | None, stamps: list[tuple[int, ...]]) -> None:
        """`stamps`: of the files of `tls`, from before they were read."""
        self.channel = channel
        self._tls, self._stamps = tls, stamps
        self.delivery = DeliveryServiceStub(channel)
        self.operations = OperationsServiceStub(channel)
        self.keys = KeyServiceStub(channel)

    def outdated(self) -> bool:
        """Whether files that it was made with have changed: gRPC never reads them again."""
        return stamps_of(self._tls) != self._stamps


class Connection(_Services):
    """Of one process."""

    def __init__(self, target: str, tls: TLS | None, timeout: float) -> None:
        """`timeout`: seconds that a call takes at most."""
        self.pid = os.getpid()
        options, stamps = channel_options(target, timeout), stamps_of(tls)
        if tls is None:
            channel = grpc.insecure_channel(target, options=options)
        else:
            channel = grpc.secure_channel(target, tls.credentials(), options=options)
        super().__init__(channel, tls, stamps)


class Connections:
    """Of one client: one for each process that uses it, of which several threads may."""

    def __init__(self, target: str, tls: TLS | None, timeout: float) -> None:
        """`timeout`: seconds that a call takes at most."""
        self.tls = tls
        self._how = (target, tls, timeout)
        self._lock, self._lock_pid = threading.Lock(), os.getpid()
        self._held: Connection | None = None
        #: those that others took the place of, while calls still use them
        self._former: weakref.WeakSet[Connection] = weakref.WeakSet()

    def get(self) -> Connection:
        """That of this process."""
        held = self._held
        if held is not None and held.pid == os.getpid():
            return held
        if self._lock_pid != os.getpid():
            # We forked. The lock may have been held by a thread that does not exist here.
            self._lock, self._lock_pid = threading.Lock(), os.getpid()
        with self._lock:
            if self._held is None or self._held.pid != os.getpid():
                # The connection of the parent stays open there; here it is only forgotten.
                self._held = Connection(*self._how)
            return self._held

    def renew(self) -> None:
        """Once the server cannot be reached: with files of TLS that have changed since, if they can be used.
        What is under way on the former ends there."""
        held = self._held
        if held is None or held.pid != os.getpid() or not held.outdated():
            return
        try:
            fresh = Connection(*self._how)
        except ConfigurationError:
            return  # one file may change a moment after the other
        with self._lock:
            if self._held is held:
                self._former.add(held)
                self._held = fresh

    def close(self) -> None:
        held, self._held = self._held, None
        for one in (held, *self._former):
            if one is not None and one.pid == os.getpid():
                one.channel.close()


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
        options, stamps = channel_options(target, timeout), stamps_of(tls)
        if tls is None:
            channel = grpc.aio.insecure_channel(target, options=options)
        else:
            channel = grpc.aio.secure_channel(target, tls.credentials(), options=options)
        super().__init__(channel, tls, stamps)
        _open.add(self)

    async def close(self) -> None:
        await self.channel.close()
        _open.discard(self)


class AsyncConnections:
    """Of one client: one for each of the event loops that use it, of which several threads may run some."""

    def __init__(self, target: str, tls: TLS | None, timeout: float) -> None:
        """`timeout`: seconds that a call takes at most."""
        self.tls = tls
        self._how = (target, tls, timeout)
        # A connection holds its loop, so that no other gets its id.
        self._held: dict[tuple[int, int], AsyncConnection] = {}
        #: those that others took the place of, while calls still use them
        self._former: weakref.WeakSet[AsyncConnection] = weakref.WeakSet()

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

    def renew(self) -> None:
        """Once the server cannot be reached: with files of TLS that have changed since, if they can be used.
        What is under way on the former ends there."""
        held = self._held.get(owner())
        if held is None or not held.outdated():
            return
        with suppress(ConfigurationError):  # one file may change a moment after the other
            self._held[held.owner] = AsyncConnection(*self._how)
            self._former.add(held)

    async def close(self) -> None:
        """Those of this loop; the others are forgotten, and end with what is under way on them."""
        own = [one for one in (*self._held.values(), *self._former) if one.owner == owner()]
        self._held.clear()
        for one in own:
            await one.close()
