"""The tree of fedsvc's own exceptions.

    FedsvcError
    ├── ConfigurationError      a setting is missing, unknown or bad; names it
    ├── InvalidInput            the caller's input; names the field
    │   ├── InvalidActivity
    │   ├── InvalidInbox
    │   └── InvalidKey
    ├── RequestIdReused         the request id belongs to another call
    ├── NotFound
    ├── QueueUnavailable        Redis does not answer, or not as a writable master
    ├── QueueCorrupt            what Redis holds is not what fedsvc wrote
    ├── ArchiveUnavailable      the database does not answer
    └── KeyUnavailable          a signing key is unknown, or no key encryption key opens it

A message never holds a private key, a token or a body.
"""

from __future__ import annotations


class FedsvcError(Exception):
    """Base of all of them."""


class ConfigurationError(FedsvcError):
    """A setting is missing, unknown or bad."""

    def __init__(self, setting: str, problem: str) -> None:
        super().__init__(f"{setting}: {problem}")
        self.setting = setting
        self.problem = problem


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


class RequestIdReused(FedsvcError):
    """The request id was used for a call with other content."""


class NotFound(FedsvcError):
    """What was asked for is neither in the queue nor in the archive."""


class QueueUnavailable(FedsvcError):
    """Redis does not answer, or refuses writes. Nothing was accepted; the call may be repeated."""


class QueueCorrupt(FedsvcError):
    """What Redis holds under one of our keys is not what fedsvc writes there."""


class ArchiveUnavailable(FedsvcError):
    """The database does not answer, or its schema is not migrated."""


class KeyUnavailable(FedsvcError):
    """The signing key is unknown, or none of the key encryption keys opens it."""
