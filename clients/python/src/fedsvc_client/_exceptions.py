"""The exceptions of the client.

    FedsvcError
    ├── InvalidRequest        the input is refused, by the client (the message names the argument) or by the
    │                         server: `violations` names the fields, or `reason` (as KEY_IN_USE) says what
    │                         stands in the way
    ├── RequestIdReused       the request id belongs to another call
    ├── NotFound              there is no such delivery or dead letter
    ├── PermissionDenied      the token is missing, unknown or not enough
    ├── ResourceExhausted     too much for now; `retry_after` says when to come back
    ├── Unavailable           the server or its queue cannot be reached; nothing is known to be accepted
    │   └── DeadlineExceeded  no answer in time
    ├── Unimplemented         the server does not have this call yet
    ├── ClientClosed          the client was closed, before the call or while it was made
    ├── ConfigurationError    a setting is missing or bad: an argument of the client, or what `Configuration`
    │                         reads
    └── ServerError           the server failed in a way that is not the caller's doing

`Unavailable` is raised after the client has tried again under the same request id, until its deadline.
Repeating such a call with that `request_id` is always safe.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2


@dataclass(frozen=True)
class FieldViolation:
    """One thing that is wrong with a request."""

    field: str
    description: str


class FedsvcError(Exception):
    """Base of all of them. `reason` is the machine-readable reason, empty if the server gave none."""

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        violations: Sequence[FieldViolation] = (),
        retry_after: float | None = None,
        request_id: str = "",
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.violations = tuple(violations)
        #: seconds, if the server says when to come back
        self.retry_after = retry_after
        #: of the call that failed, to repeat it with
        self.request_id = request_id


class InvalidRequest(FedsvcError, ValueError):
    """The input is refused."""


class RequestIdReused(FedsvcError):
    """The request id belongs to another call."""


class NotFound(FedsvcError, LookupError):
    """There is no such thing."""


class PermissionDenied(FedsvcError):
    """The token is missing, unknown or not enough."""


class ResourceExhausted(FedsvcError):
    """Too much for now."""


class Unavailable(FedsvcError):
    """The server or its queue cannot be reached."""


class DeadlineExceeded(Unavailable):
    """No answer in time."""


class Unimplemented(FedsvcError):
    """The server does not have this call."""


class ClientClosed(FedsvcError, ValueError):
    """The client was closed; it cannot be used any more."""


class ConfigurationError(FedsvcError, ValueError):
    """A setting of the client is missing or bad; the message names it, and never shows a token."""


class ServerError(FedsvcError):
    """The server failed."""


_BY_CODE: dict[grpc.StatusCode, type[FedsvcError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequest,
    grpc.StatusCode.FAILED_PRECONDITION: InvalidRequest,
    grpc.StatusCode.ALREADY_EXISTS: RequestIdReused,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.UNAUTHENTICATED: PermissionDenied,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.ABORTED: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.UNIMPLEMENTED: Unimplemented,
}


def from_call(
    code: grpc.StatusCode, details: str | None, trailers: Iterable[Any], request_id: str
) -> FedsvcError:
    """The exception for a call that ended with `code`."""
    reason, violations, retry_after = "", [], None
    for name, value in trailers:
        if name != "grpc-status-details-bin" or not isinstance(value, bytes):
            continue
        with suppress(DecodeError):  # not the server's own: something between makes answers too
            for detail in status_pb2.Status.FromString(value).details:
                info, bad, retry = (
                    error_details_pb2.ErrorInfo(),
                    error_details_pb2.BadRequest(),
                    error_details_pb2.RetryInfo(),
                )
                if detail.Unpack(info):
                    reason = info.reason
                elif detail.Unpack(bad):
                    violations = [FieldViolation(v.field, v.description) for v in bad.field_violations]
                elif detail.Unpack(retry):
                    retry_after = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
    kind = _BY_CODE.get(code, ServerError)
    if kind is ResourceExhausted and not reason and "message larger than max" in (details or ""):
        kind, reason = InvalidRequest, "MESSAGE_TOO_LARGE"  # it will be too large the next time too
    return kind(
        details or code.name.lower(),
        reason=reason,
        violations=violations,
        retry_after=retry_after,
        request_id=request_id,
    )
