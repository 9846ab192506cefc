"""Who calls, and what it may do. Known to the code that serves a call, without being handed through it."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from fedsvc.errors import PermissionDenied


class Scope(StrEnum):
    #: hand over activities, and see what became of them
    DELIVER = "deliver"
    #: see and steer the queue
    OPERATE = "operate"
    #: register and delete signing keys
    KEYS = "keys"


@dataclass(frozen=True, slots=True)
class Caller:
    name: str
    scopes: frozenset[Scope] = field(default_factory=lambda: frozenset(Scope))
    #: hosts of the key ids that it may sign with; None for all
    origins: frozenset[str] | None = None

    def check_origin(self, field: str, origin: str) -> None:
        """Raises PermissionDenied if it may not speak for this instance."""
        if self.origins is not None and origin not in self.origins:
            raise PermissionDenied(f"{field}: {self.name} may not sign for {origin}")


#: of a server without tokens
ANYBODY: Final = Caller("anybody")
_current: ContextVar[Caller] = ContextVar("caller", default=ANYBODY)


def caller() -> Caller:
    """Of the call that is being served."""
    return _current.get()


def serve(known: Caller) -> None:
    """From here on, this task serves `known`."""
    _current.set(known)


def allowed_origins() -> frozenset[str] | None:
    """Whose deliveries the caller may see and change; None for all."""
    return _current.get().origins
