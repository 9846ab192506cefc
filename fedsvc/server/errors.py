"""What callers see when something is wrong: `google.rpc.Status` with details, never a stack trace.

    InvalidInput       INVALID_ARGUMENT    BadRequest names the field
    HandlerFailed      FAILED_PRECONDITION the handler of the activity's type is broken; is logged
    RequestIdReused    ALREADY_EXISTS
    AlreadyExists      ALREADY_EXISTS
    NotFound           NOT_FOUND
    Unauthenticated    UNAUTHENTICATED
    PermissionDenied   PERMISSION_DENIED
    KeyInUse,
    KeyUnavailable     FAILED_PRECONDITION
    Overloaded         RESOURCE_EXHAUSTED  RetryInfo: by priority, bulk first; RATE_LIMITED, ORIGIN_BACKLOG,
                                           CALLER_BACKLOG
    QueueUnavailable,
    ArchiveUnavailable UNAVAILABLE         RetryInfo: nothing was done, repeat the call
    Stopping           UNAVAILABLE         streams go on at another server
    anything else      INTERNAL            is logged; the caller learns nothing of it

Every one carries an ErrorInfo with the domain `fedsvc`. Source: AIP-193.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Final, NoReturn, TypeVar

import grpc
import structlog
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from fedsvc.errors import (
    AlreadyExists,
    ArchiveUnavailable,
    CallerBacklogFull,
    FedsvcError,
    HandlerFailed,
    InvalidInput,
    KeyInUse,
    KeyUnavailable,
    NotFound,
    OriginBacklogFull,
    Overloaded,
    PermissionDenied,
    QueueUnavailable,
    RateLimited,
    RequestIdReused,
    Stopping,
    Unauthenticated,
)
from fedsvc.v1 import types_pb2

log = structlog.get_logger(__name__)

DOMAIN: Final = "fedsvc"
#: seconds after which a caller may try again
_RETRY_AFTER: Final = 1
_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}

#: what is told of each exception; a subclass comes before its base
TOLD: Final[tuple[tuple[type[FedsvcError], int, str], ...]] = (
    (HandlerFailed, code_pb2.FAILED_PRECONDITION, "HANDLER_FAILED"),
    (RequestIdReused, code_pb2.ALREADY_EXISTS, "REQUEST_ID_REUSED"),
    (AlreadyExists, code_pb2.ALREADY_EXISTS, "ALREADY_EXISTS"),
    (NotFound, code_pb2.NOT_FOUND, "NOT_FOUND"),
    (Unauthenticated, code_pb2.UNAUTHENTICATED, "UNAUTHENTICATED"),
    (PermissionDenied, code_pb2.PERMISSION_DENIED, "PERMISSION_DENIED"),
    (KeyInUse, code_pb2.FAILED_PRECONDITION, "KEY_IN_USE"),
    (KeyUnavailable, code_pb2.FAILED_PRECONDITION, "KEY_UNAVAILABLE"),
    (OriginBacklogFull, code_pb2.RESOURCE_EXHAUSTED, "ORIGIN_BACKLOG"),
    (CallerBacklogFull, code_pb2.RESOURCE_EXHAUSTED, "CALLER_BACKLOG"),
    (RateLimited, code_pb2.RESOURCE_EXHAUSTED, "RATE_LIMITED"),
    (Overloaded, code_pb2.RESOURCE_EXHAUSTED, "OVERLOADED"),
    (QueueUnavailable, code_pb2.UNAVAILABLE, "QUEUE_UNAVAILABLE"),
    (ArchiveUnavailable, code_pb2.UNAVAILABLE, "ARCHIVE_UNAVAILABLE"),
    (Stopping, code_pb2.UNAVAILABLE, "STOPPING"),
)

Request = TypeVar("Request")
Response = TypeVar("Response")
Method = Callable[[Any, Request, Any], Awaitable[Response]]
StreamMethod = Callable[[Any, Request, Any], AsyncGenerator[Response, None]]


def status_of(error: Exception) -> status_pb2.Status:
    """The status that tells a caller of `error`."""
    code, reason = _code_and_reason(error)
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN)]
    match error:
        case InvalidInput():
            violation = error_details_pb2.BadRequest.FieldViolation(
                field=error.field, description=error.problem
            )
            details.append(error_details_pb2.BadRequest(field_violations=[violation]))
        case Overloaded():
            details.append(_retry_info(error.retry_after_s))
        case QueueUnavailable() | ArchiveUnavailable():
            details.append(_retry_info(_RETRY_AFTER))
        case _:
            pass
    text = "internal error; see the server's log" if code == code_pb2.INTERNAL else str(error)
    status = status_pb2.Status(code=code, message=text)
    for detail in details:
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def item_error(error: FedsvcError, item: str = "") -> types_pb2.ItemError:
    """What is told of one of many; `item` names it in the request."""
    code, reason = _code_and_reason(error)
    field, text = item, str(error)
    if isinstance(error, InvalidInput):
        field, text = f"{item}.{error.field}" if item else error.field, error.problem
    elif isinstance(error, HandlerFailed):
        field = f"{item}.activity" if item else "activity"
    return types_pb2.ItemError(code=code, reason=reason, message=text, field=field)


def _code_and_reason(error: Exception) -> tuple[int, str]:
    if isinstance(error, InvalidInput):
        return code_pb2.INVALID_ARGUMENT, error.code
    for kind, code, reason in TOLD:
        if isinstance(error, kind):
            return code, reason
    return code_pb2.INTERNAL, "INTERNAL"


def _retry_info(seconds: int) -> error_details_pb2.RetryInfo:
    info = error_details_pb2.RetryInfo()
    info.retry_delay.seconds = seconds
    return info


async def abort(context: grpc.aio.ServicerContext[Any, Any], status: status_pb2.Status) -> NoReturn:
    """End the call with this status."""
    await context.abort(
        _CODES[status.code],
        status.message,
        (("grpc-status-details-bin", status.SerializeToString()),),
    )
    raise AssertionError("abort returns never")


def rpc_stream(method: StreamMethod[Request, Response]) -> StreamMethod[Request, Response]:
    """As `rpc`, for a method that gives many responses and has all the time in the world."""

    @functools.wraps(method)
    async def wrapped(self: Any, request: Request, context: Any) -> AsyncGenerator[Response, None]:
        try:
            async with aclosing(method(self, request, context)) as responses:
                async for response in responses:
                    yield response
            return
        except grpc.aio.AbortError:
            raise
        except Exception as error:  # noqa: BLE001 - the caller is told
            status = _failed(method.__name__, error)
        await abort(context, status)

    return wrapped


def rpc(method: Method[Request, Response]) -> Method[Request, Response]:
    """Turns our exceptions into statuses, and ends in time for the caller to hear of it."""

    @functools.wraps(method)
    async def wrapped(self: Any, request: Request, context: Any) -> Response:
        remaining = context.time_remaining()
        # A tenth of the caller's patience, so that it reads UNAVAILABLE instead of running into its deadline.
        limit = None if remaining is None else max(0.05, remaining * 0.9)
        try:
            async with asyncio.timeout(limit):
                return await method(self, request, context)
        except grpc.aio.AbortError:
            raise
        except TimeoutError:
            status = status_of(QueueUnavailable("no answer from Redis or the database in time"))
        except Exception as error:  # noqa: BLE001 - the caller is told
            status = _failed(method.__name__, error)
        return await abort(context, status)

    return wrapped


def _failed(method: str, error: Exception) -> status_pb2.Status:
    """What the caller is told; what he is not told is logged."""
    status = status_of(error)
    if status.code == code_pb2.INTERNAL:
        log.error("rpc_failed", method=method, exc_info=error)
    return status
