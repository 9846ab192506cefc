"""The tree of fedsvc's own exceptions.

    FedsvcError
    ├── ConfigurationError      a setting is missing, unknown or bad; names it
    ├── InvalidInput            the caller's input; names the field
    │   ├── InvalidActivity
    │   ├── InvalidInbox
    │   └── InvalidKey
    ├── HandlerFailed           a handler of an activity type is broken; names it
    ├── RequestIdReused         the request id belongs to another call
    ├── AlreadyExists           there is one of this name
    ├── NotFound
    ├── PermissionDenied        the caller has no right to this
    ├── Unauthenticated         the caller has not shown who it is
    ├── KeyInUse                deliveries or schedules need the key that is to be deleted
    ├── Overloaded              no room for new work of this priority now
    │   ├── RateLimited         a caller or an origin brings more than it may
    │   ├── OriginBacklogFull   an origin has as much pending as it may
    │   └── CallerBacklogFull   the origins of a caller have, together
    ├── QueueUnavailable        Redis does not answer, or not as a writable master
    ├── QueueCorrupt            what Redis holds is not what fedsvc wrote
    ├── ArchiveUnavailable      the database does not answer, or is not migrated
    ├── Stopping                this server ends; another, or its successor, takes the call
    └── KeyUnavailable          a signing key is unknown, or no key encryption key opens it

A message never holds a private key, a token or a body.
"""

from __future__ import annotations

from fedsvc.domain.errors import (
    FedsvcError,
    InvalidActivity,
    InvalidInbox,
    InvalidInput,
    InvalidKey,
    KeyUnavailable,
)

__all__ = [
    "AlreadyExists",
    "ArchiveUnavailable",
    "CallerBacklogFull",
    "ConfigurationError",
    "FedsvcError",
    "HandlerFailed",
    "InvalidActivity",
    "InvalidInbox",
    "InvalidInput",
    "InvalidKey",
    "KeyInUse",
    "KeyUnavailable",
    "NotFound",
    "OriginBacklogFull",
    "Overloaded",
    "PermissionDenied",
    "QueueCorrupt",
    "QueueUnavailable",
    "RateLimited",
    "RequestIdReused",
    "Stopping",
    "Unauthenticated",
]


class ConfigurationError(FedsvcError):
    """A setting is missing, unknown or bad."""

    def __init__(self, setting: str, problem: str) -> None:
        super().__init__(f"{setting}: {problem}")
        self.setting = setting
        self.problem = problem


class HandlerFailed(FedsvcError):
    """The handler of an activity type raised what it must not, or gave what cannot be used. The cause is in
    `__cause__`."""

    def __init__(self, handler: str, activity_type: str) -> None:
        super().__init__(f"the handler of {activity_type}, {handler}, failed; see the log")
        self.handler = handler
        self.activity_type = activity_type


class RequestIdReused(FedsvcError):
    """The request id was used for a call with other content."""

    def __init__(self, message: str = "request_id was used for a call with other content") -> None:
        super().__init__(message)


class AlreadyExists(FedsvcError):
    """There is one of this name already."""


class NotFound(FedsvcError):
    """What was asked for is neither in the queue nor in the archive."""


class PermissionDenied(FedsvcError):
    """The caller is known, and has no right to this."""


class Unauthenticated(FedsvcError):
    """The caller has not shown who it is."""


class KeyInUse(FedsvcError):
    """Deliveries that wait, or schedules, are signed with this key; it cannot be deleted now."""


class Overloaded(FedsvcError):
    """There is no room for new work of this priority now. `retry_after_s`: seconds until to ask again."""

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RateLimited(Overloaded):
    """A caller or an origin brings more than it may for now."""


class OriginBacklogFull(Overloaded):
    """An origin has as many deliveries pending as it may have. Nothing of the call was accepted."""


class CallerBacklogFull(Overloaded):
    """The origins that a caller may sign for have as many deliveries pending as they may have together.
    Nothing of the call was accepted."""


class QueueUnavailable(FedsvcError):
    """Redis does not answer, or refuses writes. Nothing was accepted; the call may be repeated."""


class Stopping(FedsvcError):
    """This server stops. What was going on can go on at another."""


class QueueCorrupt(FedsvcError):
    """What Redis holds under one of our keys is not what fedsvc writes there."""


class ArchiveUnavailable(FedsvcError):
    """The database does not answer, or its schema is not migrated."""
