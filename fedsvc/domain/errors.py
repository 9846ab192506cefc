"""What the rules object to. The whole tree of exceptions is drawn in `fedsvc.errors`."""

from __future__ import annotations


class FedsvcError(Exception):
    """Base of all of fedsvc's exceptions."""


class InvalidInput(FedsvcError):
    """The caller's input is not acceptable; `field` is its path in the request."""

    #: ErrorInfo.reason of the gRPC status
    code = "INVALID_ARGUMENT"

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class InvalidActivity(InvalidInput):
    code = "INVALID_ACTIVITY"


class InvalidInbox(InvalidInput):
    code = "INVALID_INBOX"


class InvalidKey(InvalidInput):
    code = "INVALID_KEY"


class KeyUnavailable(FedsvcError):
    """The signing key is unknown, or none of the key encryption keys opens it."""
