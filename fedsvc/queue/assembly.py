"""Puts a Lua script together of what it needs, so that little of it is made anew at each run.

Redis makes all functions and variables of a script anew each time that it runs. That is most of what a short
run costs: a script that has nothing to do, or only one thing, costs Redis a fifth less since those that are
needed seldom are made then.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Final, NamedTuple

#: a function at the beginning of a line: on one line, or up to an `end` there
_FUNCTION: Final = re.compile(r"^local function (\w+)\((?:[^\n]* end|.*?^end)$\n", re.MULTILINE | re.DOTALL)
#: constants that are numbers; and any names
_CONSTANTS: Final = re.compile(
    r"^local ([A-Z][A-Z0-9_, ]*?) =(?:\n )? ([0-9][0-9, ]*)(?: --[^\n]*)?\n", re.MULTILINE
)
_NAMES: Final = re.compile(r"^local (?:function )?(\w+(?:,\s*\w+)*)", re.MULTILINE)
_WORD: Final = re.compile(r"\w+")
_WORD_OR_TEXT: Final = re.compile(r"'[^'\n]*'|\w+")
#: what stands after a dot is no name, and what is in quotes neither
_NAME_OR_TEXT: Final = re.compile(r"'[^'\n]*'|(?<![.\w])\w+")
_NOT_CALLED: Final = re.compile(r"(?<![.\w])(\w+)\b(?!\()")
_COMMENT: Final = re.compile(r"--.*")
#: variables of functions around it that Lua lets a function use
_MOST_OUTER: Final = 60


def assemble(parts: Sequence[str], body: str, seldom: Collection[str] = ()) -> str:
    """One script of shared `parts` and its own `body`, so that little is made anew at each run:

    - functions that `body` does not come to are left out;
    - those named in `seldom`, and what only they come to, are made when the first of them is called;
    - constants that are numbers stand where they are used, since a function is made the slower the more
      variables around it functions refer to;
    - each part is a function inside the one before, since what it uses is looked for once then, not anew for
      each of its functions. (Lua also allows a function no more than 200 variables.)

    Raises ValueError if `seldom` cannot be as it is.
    """
    *parts, body = _deferred(_inlined([*_shaken(parts, body), body]), seldom)
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


class _Function(NamedTuple):
    """Of the `part`th text, from `start` to `end` there."""

    part: int
    start: int
    end: int
    code: str


def _deferred(texts: Sequence[str], seldom: Collection[str]) -> list[str]:
    """The texts, with one function in place of those that are seldom needed: `warm` makes them, where the
    last of them stood, and puts those that others call into the table `cold`."""
    found = [
        (match[1], _Function(part, match.start(), match.end(), match[0]))
        for part, text in enumerate(texts)
        for match in _FUNCTION.finditer(text)
    ]
    functions = dict(found)
    names = [name for name, _ in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"there are two functions of the name {', '.join(sorted(twice))}")
    if missing := set(seldom) - functions.keys():
        raise ValueError(f"seldom: there is no function {', '.join(sorted(missing))}")
    if not seldom:
        return list(texts)
    rest = [_FUNCTION.sub("", text) for text in texts]
    hot = _reached(rest, functions, seldom)
    cold = [name for name in names if name not in hot]
    last = functions[cold[-1]]
    _check(texts, functions, hot, cold)
    needed = set().union(*map(_names, (*rest, *_codes(functions, hot))))
    called = [name for name in cold if name in needed]
    code = "".join(functions[name].code for name in cold)
    named = ", ".join(f"{name} = {name}" for name in called)
    maker = f"warm = function()\nif cold then return cold end\n{code}cold = {{ {named} }}\nreturn cold\nend\n"
    made = []
    for part, text in enumerate(texts):
        before, after = (text[: last.start], text[last.end :]) if part == last.part else (text, "")
        before, after = (_called(_without(piece, cold), called) for piece in (before, after))
        made.append(before + maker + after if part == last.part else before)
    made[0] = f"local cold, warm\n{made[0]}"
    return made


def _check(
    texts: Sequence[str], functions: dict[str, _Function], hot: Collection[str], cold: Sequence[str]
) -> None:
    """Raises ValueError if functions cannot be made where the last of them stands."""
    last = functions[cold[-1]]
    before = [_FUNCTION.sub("", text) for text in (*texts[: last.part], texts[last.part][: last.start])]
    early = _reached(before, functions, cold)
    for code in (*before, *_codes(functions, early)):
        if needed := _names(code) & set(cold):
            raise ValueError(f"seldom: needed before it is there: {', '.join(sorted(needed))}")
    for code in (*(_FUNCTION.sub("", text) for text in texts), *_codes(functions, hot)):
        if named := set(_NOT_CALLED.findall(_WORD_OR_TEXT.sub(_unquoted, code))) & set(cold):
            raise ValueError(f"seldom: not only called: {', '.join(sorted(named))}")
    declared = [name for text in texts for names in _NAMES.findall(text) for name in _WORD.findall(names)]
    used = set().union(*(_names(functions[name].code) for name in cold)) & set(declared) - set(cold)
    if twice := {name for name in used if declared.count(name) > 1}:
        raise ValueError(f"seldom: there are two variables of the name {', '.join(sorted(twice))}")
    if len(used) >= _MOST_OUTER:
        raise ValueError(f"seldom: they use {len(used)} variables around them, which is too many")


def _reached(codes: Iterable[str], functions: dict[str, _Function], seldom: Collection[str]) -> set[str]:
    """Functions that these codes come to, but not through those that are seldom needed."""
    reached: set[str] = set()
    codes = list(codes)
    while fresh := set().union(*map(_names, codes)) & functions.keys() - set(seldom) - reached:
        reached |= fresh
        codes = _codes(functions, fresh)
    return reached


def _codes(functions: dict[str, _Function], names: Iterable[str]) -> list[str]:
    return [functions[name].code for name in names]


def _without(text: str, names: Collection[str]) -> str:
    return _FUNCTION.sub(lambda found: "" if found[1] in names else found[0], text)


def _called(code: str, names: Collection[str]) -> str:
    return _NAME_OR_TEXT.sub(lambda word: f"warm().{word[0]}" if word[0] in names else word[0], code)


def _names(code: str) -> set[str]:
    return {word for word in _NAME_OR_TEXT.findall(code) if not word.startswith("'")}


def _unquoted(word: re.Match[str]) -> str:
    return "''" if word[0].startswith("'") else word[0]
