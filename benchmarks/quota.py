"""A share of a core, and no more: the kernel's CPU bandwidth control, which keeps a container's CPU limit.

Linux, as root.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

#: as Kubernetes has it, microseconds
PERIOD: Final = 100_000
#: where a group can be made, the file that holds it to its share and what that file takes
_V1: Final = (Path("/sys/fs/cgroup/cpu"), "cpu.cfs_quota_us", "{quota}")
_V2: Final = (Path("/sys/fs/cgroup"), "cpu.max", "{quota} {period}")
_numbers = itertools.count(1)


class Unlimited(Exception):
    """No group of processes can be held to a share of a core here."""


@contextmanager
def limited(share: float) -> Iterator[Sequence[str]]:
    """What to put before a command, so that it and all that it starts get `share` of one core together. They
    must have ended when this is left. Raises Unlimited."""
    parent, limit, value = _V1 if _V1[0].is_dir() else _V2
    group = parent / f"fedsvc-bench-{os.getpid()}-{next(_numbers)}"
    try:
        group.mkdir()
    except OSError as error:
        raise Unlimited(f"{group}: {error.strerror}") from None
    try:
        try:
            (group / limit).write_text(value.format(quota=round(share * PERIOD), period=PERIOD))
        except OSError as error:
            raise Unlimited(f"{group / limit}: {error.strerror}") from None
        yield "sh", "-c", 'echo $$ > "$0" && exec "$@"', str(group / "cgroup.procs")
    finally:
        group.rmdir()
