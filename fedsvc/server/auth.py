"""Lets in who has a token with the right scope; everything else is refused before it is read.

What may be called with which scope is said here for every method of the contract; a method that is not
listed is refused.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import grpc

from fedsvc.errors import FedsvcError, PermissionDenied, Unauthenticated
from fedsvc.server.caller import ANYBODY, Caller, Scope
from fedsvc.server.limits import Limits
from fedsvc.server.reception import Reception, refusal
from fedsvc.server.tokens import TokenBook

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
    # The application says what it hears, and asks how the queue is, and a host that it was told is down.
    "/fedsvc.v1.OperationsService/GetHost": _EITHER,
    "/fedsvc.v1.OperationsService/NotifyHostSeen": _EITHER,
    "/fedsvc.v1.OperationsService/GetQueueStats": _EITHER,
    "/fedsvc.v1.OperationsService/WatchQueueStats": _EITHER,
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
        "DeleteSchedule", "ListAuditEvents", "GetOperation", "ListOperations",
    )
)  # fmt: skip
#: who asks whether the server lives needs no token
_OPEN: Final = "/grpc.health.v1.Health/"


def rights(method: str) -> frozenset[Scope]:
    """Scopes of which one is needed; none for a method that nobody may call."""
    service = method[: method.rfind("/") + 1]
    return RIGHTS.get(method) or RIGHTS.get(service) or frozenset()


def check_rights(method: str, known: Caller) -> None:
    """Raises PermissionDenied if `known` may not call the method."""
    needed = rights(method)
    name = method.rpartition("/")[2]
    if not needed & known.scopes:
        raise PermissionDenied(f"{name} needs the scope {' or '.join(sorted(needed)) or 'of nobody'}")
    if method in EVERYWHERE and known.origins is not None:
        raise PermissionDenied(f"{name} concerns all instances; {known.name} has rights to some only")


class Authenticate(grpc.aio.ServerInterceptor):
    def __init__(self, tokens: TokenBook, limits: Limits, reception: Reception) -> None:
        self._tokens = tokens
        self._limits = limits
        self._reception = reception

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None:
            return None
        if method.startswith(_OPEN):
            return self._reception.open(handler, method)
        try:
            known, who = self._identify(handler_call_details.invocation_metadata)
        except FedsvcError as error:
            return refusal(handler, error)
        try:
            self._limits.call(known)
            check_rights(method, known)
        except FedsvcError as error:
            return refusal(handler, error, known)
        return self._reception.served(handler, known, method, who)

    def _identify(self, metadata: Any) -> tuple[Caller, Callable[[], Caller | None]]:
        """Who calls, and what tells whose token it is later on. Raises Unauthenticated."""
        if self._tokens.open:
            return ANYBODY, lambda: ANYBODY
        given = [value for key, value in metadata or () if key == "authorization"]
        kind, _, token = given[0].partition(" ") if given else ("", "", "")
        if len(given) > 1 or kind.lower() != "bearer" or not token.strip():
            raise Unauthenticated("a token is needed: metadata authorization, `Bearer <token>`")
        digest = self._tokens.digest(token.strip())
        known = self._tokens.identify(digest)
        if known is None:
            raise Unauthenticated("the token is not known")
        return known, lambda: self._tokens.identify(digest)
