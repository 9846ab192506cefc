"""The Lua scripts, each with the shared prelude and the parts that it names in a line `-- uses: a, b`.

Those of transitions work on a partition; `-- uses: nothing` marks one that does not, and needs no prelude.
"""

from __future__ import annotations

import hashlib
import re
from importlib.resources import files
from typing import Final

_FOLDER: Final = files("fedsvc.queue") / "lua"
_USES: Final = re.compile(r"^-- uses: (.+)$", re.MULTILINE)
#: scripts that run although Redis is full. Only what takes in new work needs memory for good: were the rest
#: refused too, nothing could be finished, and Redis would stay full.
_TAKES_IN: Final = frozenset({"enqueue", "unspill"})


class Script:
    """One Lua script."""

    def __init__(self, name: str) -> None:
        self.name = name
        body = _read(name)
        used = _USES.search(body)
        if used is not None and used[1] == "nothing":
            shared = []
        else:
            shared = [_read("prelude"), *(_read(part) for part in (used[1].split(", ") if used else ()))]
        # A function of its own, since Lua allows one 200 local variables.
        parts = [*shared, f"local function main()\n{body}\nend\nreturn main()\n"]
        flags = "" if name in _TAKES_IN else "#!lua flags=allow-oom\n"
        self.source = flags + "\n".join(parts)
        self.sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()


def _read(name: str) -> str:
    return (_FOLDER / f"{name}.lua").read_text()
