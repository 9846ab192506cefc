"""What a signal handler does at one certain moment: while the thread that it interrupts holds a lock."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

#: a function calls another, by their qualified names
Moment = tuple[str, str]
#: a thread that waits for an event holds the event's lock
IN_AN_EVENT: Moment = ("Event.wait", "Condition.wait")


def ends_though_interrupted(
    work: Callable[[], object], handler: Callable[[], None], *moments: Moment
) -> bool:
    """Whether `work`, done in a thread, comes to an end if `handler` interrupts that thread at the first of
    `moments` that comes."""
    left = [handler]

    def trace(frame: FrameType, event: str, _: Any) -> None:
        caller = frame.f_back.f_code.co_qualname if frame.f_back else ""
        if left and (caller, frame.f_code.co_qualname) in moments:
            left.pop()()

    def traced() -> None:
        sys.settrace(trace)
        work()

    thread = threading.Thread(target=traced, daemon=True)
    thread.start()
    thread.join(10)
    assert not left, "there was no such moment"
    return not thread.is_alive()
