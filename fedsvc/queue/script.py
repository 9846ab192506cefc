"""The Lua scripts, each with the shared prelude and the parts that it names in a line `-- uses: a, b`.

Those of transitions work on a partition; `-- uses: nothing` marks one that does not, and needs no prelude.

Redis makes all functions and variables of a script anew at each run. How many there are is most of what a
short run costs, so a script is put together from what it needs; see `assemble`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Final

_FOLDER: Final = files("fedsvc.queue") / "lua"
_USES: Final = re.compile(r"^-- uses: (.+)$", re.MULTILINE)
#: what shared parts hold at the beginning of a line: a function, on one line or up to an `end` there
_FUNCTION: Final = re.compile(r"^local function (\w+)\((?:[^\n]* end|.*?^end)$\n", re.MULTILINE | re.DOTALL)
#: constants that are numbers; and any names
_CONSTANTS: Final = re.compile(
    r"^local ([A-Z][A-Z0-9_, ]*?) =(?:\n )? ([0-9][0-9, ]*)(?: --[^\n]*)?\n", re.MULTILINE
)
_NAMES: Final = re.compile(r"^local (?:function )?(\w+(?:,\s*\w+)*)", re.MULTILINE)
_WORD: Final = re.compile(r"\w+")
_WORD_OR_TEXT: Final = re.compile(r"'[^'\n]*'|\w+")
_COMMENT: Final = re.compile(r"--.*")
#: variables of functions around it that Lua lets a function use
_MOST_OUTER: Final = 60
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
    source = flags + assemble([_read(part) for part in parts], body)
    return source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


def assemble(parts: Sequence[str], body: str) -> str:
    """One script of shared `parts` and its own `body`, so that little is made anew at each run:

    - functions that `body` does not come to are left out;
    - constants that are numbers stand where they are used, since a function is made the slower the more
      variables around it functions refer to;
    - each part is a function inside the one before, since what it uses is looked for once then, not anew for
      each of its functions. (Lua also allows a function no more than 200 variables.)
    """
    *parts, body = _inlined([*_shaken(parts, body), body])
    source = body
    for i in range(len(parts) - 1, -1, -1):
        outer = {
            name for part in parts[: i + 1] for names in _NAMES.findall(part) for name in _WORD.findall(names)
        }
        if i == len(parts) - 1 or len(outer & _words(source)) <= _MOST_OUTER:
            source = f"{parts[i]}\nreturn (function()\n{source}\nend)()\n"
        else:
            source = f"{parts[i]}\n{source}"
    return source


def _shaken(parts: Sequence[str], body: str) -> list[str]:
    functions = {found[1]: found[0] for part in parts for found in _FUNCTION.finditer(part)}
    kept: set[str] = set()
    reached = "".join(_FUNCTION.sub("", part) for part in parts) + body
    while fresh := functions.keys() & _words(reached) - kept:
        kept |= fresh
        reached = "".join(functions[name] for name in fresh)
    return [_FUNCTION.sub(lambda found: found[0] if found[1] in kept else "", part) for part in parts]


def _inlined(parts: Sequence[str]) -> list[str]:
    values: dict[str, str] = {}
    for part in parts:
        for names, numbers in _CONSTANTS.findall(part):
            values.update(zip(names.split(", "), numbers.split(", "), strict=True))
    bare = (_COMMENT.sub("", _CONSTANTS.sub("", part)) for part in parts)
    return [_WORD_OR_TEXT.sub(lambda word: values.get(word[0], word[0]), part) for part in bare]


def _words(code: str) -> set[str]:
    return set(_WORD.findall(_COMMENT.sub("", code)))


def _read(name: str) -> str:
    return (_FOLDER / f"{name}.lua").read_text()
