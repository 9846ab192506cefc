"""Which dead letters somebody means."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final, Self

from fedsvc.domain.delivery import Delivery, Reason

#: characters of a type and of an actor that are asked for, at most
LONGEST_TYPE: Final = 128
LONGEST_ACTOR: Final = 2048


@dataclass(frozen=True, slots=True)
class DeadLetterFilter:
    """Those that fit all that is given; empty and 0 stand for everything."""

    host: str = ""
    activity_type: str = ""
    actor: str = ""
    #: why it was given up, or why its last attempt failed: 503s end as RETRIES_EXHAUSTED
    reason: Reason | None = None
    status: int = 0  # HTTP
    #: given up at or after, and before: milliseconds since the epoch
    start_ms: int = 0
    end_ms: int = 0

    def takes(self, letter: Delivery) -> bool:
        """Whether a dead letter fits; its time is that of its outcome."""
        time_ms = letter.outcome // 1000
        return (
            (not self.host or letter.host == self.host)
            and (not self.activity_type or letter.activity_type == self.activity_type)
            and (not self.actor or letter.actor == self.actor)
            and (self.reason is None or self.reason in _reasons(letter))
            and (not self.status or letter.status == self.status)
            and (not self.start_ms or time_ms >= self.start_ms)
            and (not self.end_ms or time_ms < self.end_ms)
        )

    def as_json(self) -> dict[str, Any]:
        """What is given, as JSON can say it."""
        given = {name: value for name, value in asdict(self).items() if value}
        return given | ({"reason": self.reason.name} if self.reason is not None else {})

    @classmethod
    def from_json(cls, given: dict[str, Any]) -> Self:
        """Of what `as_json` gave. Raises KeyError, TypeError."""
        reason = {"reason": Reason[given["reason"]]} if "reason" in given else {}
        return cls(**(given | reason))


def _reasons(letter: Delivery) -> tuple[Reason | None, ...]:
    return (letter.reason, letter.history[-1].reason) if letter.history else (letter.reason,)


EVERYTHING = DeadLetterFilter()
