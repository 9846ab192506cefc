"""Which form of signature a host is tried with, and which next if it refuses that one.

There is no one form that all take: draft-cavage comes first, RFC 9421 upon a refusal, and for an inbox with a
query draft-cavage with the path alone, as PieFed and old Pleroma verify it. What a host took that is not the
first form is remembered with the host, for a while. A knock is no retry.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from enum import IntEnum
from typing import Final, NamedTuple

from fedsvc.domain.message_signatures import DEFAULT, FULL, Coverage, wanted

#: forms tried in one attempt, at most
MAX_KNOCKS: Final = 3


class Dialect(IntEnum):
    """Kept in Redis: never renumber."""

    UNKNOWN = 0
    CAVAGE = 1
    RFC9421 = 2
    #: draft-cavage, with the path signed without its query
    CAVAGE_PATH = 3
    #: RFC 9421, with all that servers are known to ask for
    RFC9421_FULL = 4


class Form(NamedTuple):
    """How one request is signed. `coverage` matters to RFC 9421 only."""

    dialect: Dialect
    coverage: Coverage = DEFAULT


_FIRST: Final = {
    **{dialect: Form(dialect) for dialect in Dialect},
    Dialect.UNKNOWN: Form(Dialect.CAVAGE),
    Dialect.RFC9421_FULL: Form(Dialect.RFC9421_FULL, FULL),
}


def first_form(remembered: Dialect) -> Form:
    return _FIRST[remembered]


def next_form(
    tried: Sequence[Form], *, accept_signature: str, key_algorithm: str, has_query: bool
) -> Form | None:
    """After a refusal of the last of `tried`. What the host asks for by name goes before what we guess."""
    if len(tried) >= MAX_KNOCKS:
        return None
    asked = wanted(accept_signature, key_algorithm)
    if asked is not None and all(form.coverage is DEFAULT or form.coverage != asked for form in tried):
        plain = (
            set(asked.components) <= set(DEFAULT.components)
            and replace(asked, components=DEFAULT.components) == DEFAULT
        )
        if not plain or Dialect.RFC9421 not in {form.dialect for form in tried}:
            return Form(Dialect.RFC9421 if plain else Dialect.RFC9421_FULL, asked)
    spoken = {form.dialect for form in tried}
    if not spoken & {Dialect.RFC9421, Dialect.RFC9421_FULL}:
        return Form(Dialect.RFC9421)
    if Dialect.CAVAGE not in spoken:
        return Form(Dialect.CAVAGE)
    if has_query and Dialect.CAVAGE_PATH not in spoken:
        return Form(Dialect.CAVAGE_PATH)
    return None
