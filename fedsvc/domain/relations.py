"""What an activity has to do with others: whose order it keeps, and which it makes pointless.

Which relation an activity has is said by the handler of its type, in `fedsvc.handlers`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final


class Rule(IntEnum):
    """What a delivery takes back that was not sent yet, to the same inbox. See `lua/enqueue.lua`."""

    NONE = 0
    #: everything that has the same explicit supersede key
    SAME_KEY = 1
    #: Updates of the same object
    OLDER_UPDATES = 2
    #: Create and Updates of the same object
    OBJECT = 3
    #: the activity that it undoes; if that was never tried, neither is sent
    UNDONE = 4


@dataclass(frozen=True, slots=True)
class Relation:
    #: deliveries that share it and a host go in order; empty for none
    ordering_key: str = ""
    #: among whose deliveries it takes back some, or is taken back itself; empty for none
    family: str = ""
    rule: Rule = Rule.NONE
    #: id of the activity that it undoes
    undoes: str = ""

    def asked(self, *, ordering_key: str = "", supersede_key: str = "") -> Relation:
        """This relation as changed by what the caller asked for, which has precedence."""
        order = ordering_key or self.ordering_key
        if supersede_key:
            return Relation(order, supersede_key, Rule.SAME_KEY)
        return self if order == self.ordering_key else replace(self, ordering_key=order)


UNRELATED: Final = Relation()


def group_of(origin: str, key: str) -> str:
    """Names a group of deliveries in the queue: two origins share none. Hex; empty for no key."""
    if not key:
        return ""
    return hashlib.blake2b(f"{origin}\0{key}".encode(errors="surrogatepass"), digest_size=16).hexdigest()
