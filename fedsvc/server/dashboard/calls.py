"""Calls the services from inside the server's own process: with the same rights, limits, checks and errors
as a call that comes by gRPC, and as the caller whose session it is.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Mapping
from typing import Any, Final, NoReturn

import grpc
from google.rpc import error_details_pb2, status_pb2

from fedsvc.errors import FedsvcError, PermissionDenied
from fedsvc.server.auth import check_rights
from fedsvc.server.call_log import bind
from fedsvc.server.caller import Caller, serve
from fedsvc.server.errors import status_of
from fedsvc.server.limits import Limits
from fedsvc.v1 import delivery_service_pb2, key_service_pb2, operations_service_pb2

#: seconds for one call
_PATIENCE: Final = 15.0
_DETAILS: Final = "grpc-status-details-bin"


class CallFailed(grpc.aio.AbortError):
    """A call ended with a status other than OK. `problems`: by field of the request."""

    def __init__(self, code: int, message: str, problems: Mapping[str, str]) -> None:
        super().__init__(message)
        #: of google.rpc.Code
        self.code = code
        self.message = message
        self.problems = problems


class Calls:
    def __init__(self, limits: Limits, *, delivery: object, operations: object, keys: object) -> None:
        self._limits = limits
        self._methods: dict[str, tuple[str, Any]] = {}
        for module, servicer in (
            (delivery_service_pb2, delivery),
            (operations_service_pb2, operations),
            (key_service_pb2, keys),
        ):
            for service in module.DESCRIPTOR.services_by_name.values():
                for method in service.methods:
                    path = f"/{service.full_name}/{method.name}"
                    self._methods[method.name] = (path, getattr(servicer, method.name))

    def may(self, caller: Caller, name: str) -> bool:
        """Whether the caller has the right to call the method of this name."""
        try:
            check_rights(self._methods[name][0], caller)
        except PermissionDenied:
            return False
        return True

    async def call(self, caller: Caller, name: str, request: Any) -> Any:
        """The response. Raises CallFailed."""
        path, method = self._methods[name]
        try:
            self._limits.call(caller)
            check_rights(path, caller)
        except FedsvcError as error:
            raise _failed(status_of(error)) from None
        context = contextvars.copy_context()
        context.run(serve, caller)
        context.run(bind, path, caller, request)
        # A task of its own: who is served must not leak into what the connection brings next.
        return await asyncio.create_task(method(request, _Context()), context=context)


class _Context:
    """What methods need of a ServicerContext."""

    def time_remaining(self) -> float:
        return _PATIENCE

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> NoReturn:
        status = status_pb2.Status(code=code.value[0], message=details)
        for key, value in trailing_metadata or ():
            if key == _DETAILS:
                status.ParseFromString(value)
        raise _failed(status)


def _failed(status: status_pb2.Status) -> CallFailed:
    problems: dict[str, str] = {}
    request = error_details_pb2.BadRequest()
    for detail in status.details:
        if detail.Unpack(request):
            problems |= {violation.field: violation.description for violation in request.field_violations}
    return CallFailed(status.code, status.message, problems)
