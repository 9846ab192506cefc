"""One of each thing that is stored packed, byte for byte: whoever changes a form sees it here."""

import json
from pathlib import Path
from typing import Any

from fedsvc.domain.delivery import Attempt, Delivery, DeliveryId, DeliveryState, Priority, Reason
from fedsvc.domain.message import Message
from fedsvc.queue import hosts, outcome
from fedsvc.queue.format import FORMAT
from fedsvc.queue.record import Record

FORMATS = "formats.json"
ID = DeliveryId(3, 1_763_900_000_123_456)
_HISTORY = (
    Attempt(ID.accepted_ms + 5, 1200, 503, Reason.UNAVAILABLE),
    Attempt(ID.accepted_ms + 61_000, 0xFFFF, 0, Reason.TIMEOUT),
)
RECORD = Record(
    DeliveryState.RETRY, 0b101, Priority.NORMAL, 7, 2, 1, 1_764_072_800, 1_763_900_000_000_001, 42,
    "https://remote.example/inbox", _HISTORY,
)  # fmt: skip
MESSAGE = Message(
    b'{"id":"https://me.example/1"}', "https://me.example/1", "Create", "https://me.example/u/a",
    "https://me.example/u/a#main-key", "f" * 32, "me.example", ordering_key="o", supersede_key="s",
    request_id="r", trace="00-" + "1" * 32 + "-" + "2" * 16 + "-01",
    digest=Message.digest_of(b'{"id":"https://me.example/1"}'),
)  # fmt: skip
OUTCOME = Delivery(
    ID, DeliveryState.DEAD, "https://me.example/1", "Create", "https://me.example/u/a",
    "https://remote.example/inbox", "remote.example", "me.example", "https://me.example/u/a#main-key",
    Priority.NORMAL, 2, Reason.RETRIES_EXHAUSTED, 503, "gone \u2602", 1_763_900_000_500,
    expire_ms=1_764_072_800_000, ordering_key="o", request_id="r", outcome=1_763_900_000_000_009,
    completed_ms=1_763_900_000_000, history=_HISTORY,
)  # fmt: skip
HOST = hosts.HostRecord._make(
    [0, 2, 1.5, 2.5, 3.5, 100.0, 101.0, 3, 4.5, 102.0, *range(1, 9), *(float(n) for n in range(103, 111))]
)
POLICY = (3, 50.0, 5.0)


def golden() -> dict[str, Any]:
    """What this version makes of them. Numbers of enums belong to it."""
    return {
        "format": FORMAT,
        "record": RECORD.pack(ID.accepted_ms).hex(),
        "message": MESSAGE.pack().decode(),
        "message identity": MESSAGE.identity().hex(),
        "outcome": outcome.pack(OUTCOME).decode(),
        "host": HOST.pack().hex(),
        "host policy": hosts._POLICY.pack(*POLICY).hex(),
        "states": {state.name: state.value for state in DeliveryState},
        "priorities": {priority.name: priority.value for priority in Priority},
        "reasons": {reason.name: reason.value for reason in Reason},
    }


def written(directory: Path) -> dict[str, Any]:
    """As a version has left them."""
    found: dict[str, Any] = json.loads((directory / FORMATS).read_text())
    return found


def write(directory: Path) -> None:
    (directory / FORMATS).write_text(json.dumps(golden(), indent=1, ensure_ascii=False) + "\n")
