"""Ends a process when its parent has died, however the parent died (Linux; elsewhere nothing happens).

    python -I -S lifeline.py PARENT PROGRAM ARGUMENT...

becomes PROGRAM, with the lifeline to the process PARENT, which starts it. Nothing of this may be done
between fork and exec (`preexec_fn`), which may hang or fail where other threads are in gRPC, or hold a lock.
For that it imports nothing of ours.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1


def die_with(parent: int) -> None:
    """The kernel sends this process SIGTERM when the thread of `parent` that started it ends; now, if it has
    ended already."""
    if sys.platform != "linux":
        return
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    die_with(int(sys.argv[1]))
    os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606 - no shell is wanted
