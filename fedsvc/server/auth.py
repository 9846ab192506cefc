"""Lets in who has a token with the right scope; everything else is refused before it is read.

What may be called with which scope is said here for every method of the contract; a method that is not
listed is refused.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, NoReturn

import grpc
import structlog
from google.protobuf.message import DecodeError

from fedsvc.errors import FedsvcError, InvalidInput, PermissionDenied, Unauthenticated
from fedsvc.server.caller import ANYBODY, Caller, Scope, serve
from fedsvc.server.errors import abort, status_of
from fedsvc.server.limits import Limits
from fedsvc.server.metrics import REFUSED
from fedsvc.server.tokens import TokenBook

log = structlog.get_logger(__name__)

#: seconds between two log lines about callers that were refused
_TELL_EVERY: Final = 10.0

_DELIVER: Final = frozenset({Scope.DELIVER})
_OPERATE: Final = frozenset({Scope.OPERATE})
_EITHER: Final = _DELIVER | _OPERATE
_KEYS: Final = frozenset({Scope.KEYS})
#: scopes of which one is needed, by method; of a service for those of its methods that are not named
RIGHTS: Final[dict[str, frozenset[Scope]]] = {
    "/fedsvc.v1.DeliveryService/QueueActivity": _DELIVER,
    "/fedsvc.v1.DeliveryService/QueueActivities": _DELIVER,
    "/fedsvc.v1.DeliveryService/FanOutActivity": _DELIVER,
    "/fedsvc.v1.DeliveryService/GetDelivery": _EITHER,
    "/fedsvc.v1.DeliveryService/ListDeliveries": _EITHER,
    "/fedsvc.v1.DeliveryService/CancelDeliveries": _EITHER,
    "/fedsvc.v1.DeliveryService/WatchOutcomes": _DELIVER,
    # The application says what it hears, and asks how the queue is.
    "/fedsvc.v1.OperationsService/NotifyHostSeen": _EITHER,
    "/fedsvc.v1.OperationsService/GetQueueStats": _EITHER,
    "/fedsvc.v1.OperationsService/": _OPERATE,
    "/fedsvc.v1.KeyService/": _KEYS,
    "/grpc.reflection.v1alpha.ServerReflection/": frozenset(Scope),
    "/grpc.reflection.v1.ServerReflection/": frozenset(Scope),
}
#: what changes something for all instances: only for callers that have rights to all
EVERYWHERE: Final = frozenset(
    f"/fedsvc.v1.OperationsService/{method}"
    for method in (
        "ForceCleanup", "PauseHost", "ResumeHost", "UpdateHostPolicy", "ReplayDeadLetters",
        "PurgeDeadLetters", "CreateSchedule", "UpdateSchedule", "PauseSchedule", "ResumeSchedule",
        "DeleteSchedule", "ListAuditEvents",
    )
)  # fmt: skip
#: who asks whether the server lives needs no token
_OPEN: Final = "/grpc.health.v1.Health/"


def rights(method: str) -> frozenset[Scope]:
    """Scopes of which one is needed; none for a method that nobody may call."""
    service = method[: method.rfind("/") + 1]
    return RIGHTS.get(method) or RIGHTS.get(service) or frozenset()


class Authenticate(grpc.aio.ServerInterceptor):
    def __init__(self, tokens: TokenBook, limits: Limits) -> None:
        self._tokens = tokens
        self._limits = limits
        self._refused = 0
        self._told = 0.0

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method.startswith(_OPEN):
            return handler
        try:
            known = self._admit(method, handler_call_details.invocation_metadata)
        except FedsvcError as error:
            return _refusal(handler, error)
        return _served(handler, known)

    def _admit(self, method: str, metadata: Any) -> Caller:
        """Who calls. Raises Unauthenticated, PermissionDenied, Overloaded."""
        if self._tokens.open:
            self._limits.call(ANYBODY)
            return ANYBODY
        given = [value for key, value in metadata or () if key == "authorization"]
        kind, _, token = given[0].partition(" ") if given else ("", "", "")
        if len(given) > 1 or kind.lower() != "bearer" or not token.strip():
            self._note(method, "UNAUTHENTICATED")
            raise Unauthenticated("a token is needed: metadata authorization, `Bearer <token>`")
        known = self._tokens.identify(token.strip())
        if known is None:
            self._note(method, "UNAUTHENTICATED")
            raise Unauthenticated("the token is not known")
        self._limits.call(known)
        needed = rights(method)
        name = method.rpartition("/")[2]
        if not needed & known.scopes:
            self._note(method, "PERMISSION_DENIED", known.name)
            raise PermissionDenied(f"{name} needs the scope {' or '.join(sorted(needed)) or 'of nobody'}")
        if method in EVERYWHERE and known.origins is not None:
            self._note(method, "PERMISSION_DENIED", known.name)
            raise PermissionDenied(f"{name} concerns all instances; {known.name} has rights to some only")
        return known

    def _note(self, method: str, code: str, name: str = "") -> None:
        REFUSED.labels(code).inc()
        self._refused += 1
        now = time.monotonic()
        if now - self._told >= _TELL_EVERY:
            log.warning("caller_refused", method=method, code=code, caller=name, refused=self._refused)
            self._told, self._refused = now, 0


def _refusal(handler: Any, error: FedsvcError) -> grpc.RpcMethodHandler[Any, Any]:
    """The same kind of method, which refuses without looking at the request."""
    status = status_of(error)

    async def refuse(request: Any, context: Any) -> NoReturn:
        await abort(context, status)

    async def refuse_stream(request: Any, context: Any) -> Any:
        if context is not None:  # always; it makes this a generator
            await abort(context, status)
        yield

    if handler.unary_unary is not None:
        return grpc.unary_unary_rpc_method_handler(refuse)
    if handler.unary_stream is not None:
        return grpc.unary_stream_rpc_method_handler(refuse_stream)
    if handler.stream_unary is not None:
        return grpc.stream_unary_rpc_method_handler(refuse)
    return grpc.stream_stream_rpc_method_handler(refuse_stream)


def _served(handler: Any, known: Caller) -> grpc.RpcMethodHandler[Any, Any]:
    """The same method, with `known` as its caller. A single request is read here, and what is none is
    the caller's fault: gRPC itself would call it ours."""
    give = handler.response_serializer
    read = handler.request_deserializer
    inner = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream

    async def message(request: bytes, context: Any) -> Any:
        try:
            return read(request)
        except (DecodeError, ValueError):
            await abort(context, status_of(InvalidInput("request", "is not a message of this method")))

    async def answer_one(request: bytes, context: Any) -> Any:
        serve(known)
        return await inner(await message(request, context), context)

    async def stream_one(request: bytes, context: Any) -> Any:
        serve(known)
        async for response in inner(await message(request, context), context):
            yield response

    async def answer(requests: Any, context: Any) -> Any:
        serve(known)
        return await inner(requests, context)

    async def stream(requests: Any, context: Any) -> Any:
        serve(known)
        async for response in inner(requests, context):
            yield response

    if handler.unary_unary is not None:
        return grpc.unary_unary_rpc_method_handler(answer_one, response_serializer=give)
    if handler.unary_stream is not None:
        return grpc.unary_stream_rpc_method_handler(stream_one, response_serializer=give)
    if handler.stream_unary is not None:
        return grpc.stream_unary_rpc_method_handler(answer, read, give)
    return grpc.stream_stream_rpc_method_handler(stream, read, give)
