"""The pure parts of a delivery, run so that callgrind can count each by itself.

    valgrind --tool=callgrind --dump-before=getppid ... python -m benchmarks.guard.parts

Each part runs WARM times, so that the interpreter has specialised it and every cache is full, then TIMES
times between two calls of getppid(2), at each of which callgrind writes down what it has counted since the
last. Prints the names in the order of what is written down; the first is the yardstick.
"""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, cast

import orjson

from benchmarks.load import activity, compact
from fedsvc.config import Settings
from fedsvc.domain.classify import Answer, classify
from fedsvc.domain.delivery import Attempt, Delivery, DeliveryId, DeliveryState, Priority, Reason
from fedsvc.domain.inbox import parse_inbox
from fedsvc.domain.message import CONTENT_TYPE, Message
from fedsvc.domain.signatures import MessageForm, Target, imf_fixdate
from fedsvc.queue.consumer import Admitted, Consumer, Settlement
from fedsvc.queue.keys import Keys
from fedsvc.queue.link import Link
from fedsvc.queue.record import Record, shown, unpack

TIMES: Final = 500
WARM: Final = 200
BATCH: Final = 16

_INBOX: Final = "https://remote.example/users/ada/inbox"
_NOW: Final = 1_795_000_000
_BODY: Final = compact(activity(1))
_MESSAGE: Final = Message(
    _BODY, "https://me.example/activities/1", "Announce", "https://me.example/u/ada",
    "https://me.example/u/ada#main-key", "0123456789abcdef", "me.example", digest=Message.digest_of(_BODY),
)  # fmt: skip
_FORM: Final = MessageForm.of(_MESSAGE.digest, _MESSAGE.key_id, CONTENT_TYPE)
_TARGET: Final = Target.of(_INBOX)
_SIGNATURE: Final = bytes(256)
_ID: Final = DeliveryId(3, _NOW * 1_000_000)
_ATTEMPT: Final = Attempt(_NOW * 1000 + 5, 40, 202, Reason.OK)
_RECORD: Final = Record(DeliveryState.READY, 0, Priority.BULK, 1, 0, 0, _NOW + 172_800, 7, 9, _INBOX)
_PACKED: Final = _RECORD.tried(_ATTEMPT, DeliveryState.RETRY).pack(_ID.accepted_ms)


class _Dry(Consumer):
    """Packs what it would send, and sends nothing."""

    async def _run(self, *_: Any) -> Any:
        return [0]


_CONSUMER: Final = _Dry(cast(Link, None), Keys("fedsvc"), Settings.from_environment({}), "worker")


def yardstick() -> None:
    """Of no part of ours: calls, attributes, strings and a dict, as Python code has them."""
    text = ",".join(f"{name}={value}" for name, value in sorted({"b": 2, "a": 1, "c": 3}.items()))
    orjson.loads(orjson.dumps(text.split(",")))


def signing_base() -> None:
    _FORM.base(_TARGET, imf_fixdate(_NOW))


def signed_headers() -> None:
    _FORM.headers(_TARGET, "Tue, 18 Nov 2026 09:46:40 GMT", _SIGNATURE)


def classify_taken() -> None:
    classify(Answer(202), _NOW * 1000)


def classify_refused() -> None:
    classify(Answer(503, content_type="text/plain", retry_after="120", body_head=b"busy"), _NOW * 1000)


def record_packed() -> None:
    _RECORD.tried(_ATTEMPT, DeliveryState.RETRY).pack(_ID.accepted_ms)


def record_unpacked() -> None:
    unpack(_PACKED, _ID)


def inbox_parsed() -> None:
    parse_inbox("https://Remote.Example:443/users/ada/inbox?page=1")


def message_packed() -> None:
    Message.unpack(_BODY, _MESSAGE.pack())


def _delivered() -> Settlement:
    record = _RECORD.tried(_ATTEMPT, DeliveryState.DELIVERED)
    outcome: Delivery = shown(_ID, record, _MESSAGE, DeliveryState.DELIVERED)
    return Settlement(Admitted(_ID, 3, 9, _RECORD, 1), DeliveryState.DELIVERED, True, outcome=outcome)


_SETTLEMENTS: Final[Sequence[Settlement]] = [_delivered() for _ in range(BATCH)]


def settlements_packed() -> None:
    """A batch of BATCH."""
    packing: Coroutine[Any, Any, Any] = _CONSUMER.settle(3, _SETTLEMENTS)
    try:
        packing.send(None)
    except StopIteration:
        return
    raise AssertionError("it waits for something")


PARTS: Final[Sequence[Callable[[], None]]] = (
    yardstick, signing_base, signed_headers, classify_taken, classify_refused, record_packed, record_unpacked,
    inbox_parsed, message_packed, settlements_packed,
)  # fmt: skip


def main() -> None:
    gc.disable()
    for part in PARTS:
        for _ in range(WARM):
            part()
    for part in PARTS:
        os.getppid()  # what was counted before is of no part
        for _ in range(TIMES):
            part()
        os.getppid()
    print(json.dumps([part.__name__ for part in PARTS]))


if __name__ == "__main__":
    main()
