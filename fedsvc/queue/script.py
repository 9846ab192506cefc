"""The Lua scripts, each with the shared prelude and the parts that it names in a line `-- uses: a, b`.

Those of transitions work on a partition; `-- uses: nothing` marks one that does not, and needs no prelude.

A script may name functions that most of its runs do without, in lines `-- seldom: a, b`; assembly.py puts it
together.
"""

from __future__ import annotations

import hashlib
import re
from functools import cache
from importlib.resources import files
from typing import Final

from fedsvc.queue.assembly import assemble

_FOLDER: Final = files("fedsvc.queue") / "lua"
_USES: Final = re.compile(r"^-- uses: (.+)$", re.MULTILINE)
_SELDOM: Final = re.compile(r"^-- seldom: (.+)$", re.MULTILINE)
#: scripts that run although Redis is full. Only what takes in new work needs memory for good: were the rest
#: refused too, nothing could be finished, and Redis would stay full.
_TAKES_IN: Final = frozenset({"enqueue", "unspill", "adopt"})


class Script:
    """One Lua script."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.source, self.sha = _made(name)


@cache
def _made(name: str) -> tuple[str, str]:
    """Source and SHA-1; a process puts each script together once, which takes it some milliseconds."""
    body = _read(name)
    used = _USES.search(body)
    if used is not None and used[1] == "nothing":
        parts: tuple[str, ...] = ()
    else:
        parts = ("prelude", *(used[1].split(", ") if used else ()))
    flags = "" if name in _TAKES_IN else "#!lua flags=allow-oom\n"
    seldom = [name for names in _SELDOM.findall(body) for name in names.split(", ")]
    source = flags + assemble([_read(part) for part in parts], body, seldom)
    return source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


def _read(name: str) -> str:
    return (_FOLDER / f"{name}.lua").read_text()
