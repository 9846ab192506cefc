"""A dry run of `fedsvc import`: what is wrong with rows of PieFed's `send_queue`; no server is asked."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from fedsvc.cli.importer import Good, Imported, Importer, Progress
from fedsvc.domain.activity import parse_activity
from fedsvc.domain.inbox import origin_of, parse_inbox
from fedsvc.domain.keys import load_private_key
from fedsvc.errors import HandlerFailed, InvalidActivity, InvalidInbox, InvalidKey
from fedsvc.handlers.registry import Registry

if TYPE_CHECKING:
    from fedsvc.archive.send_queue import SendQueue, SendQueueRow

#: keys of which it is remembered whether they are good: to check one takes some 30 ms
_MOST_KEYS: Final = 10_000


class Rehearsal(Importer):
    """Finds what a server would object to, but for what only that one knows: its limits, the rights of a
    token, whether it takes http."""

    def __init__(self, queue: SendQueue, progress: Progress, told: Imported) -> None:
        """Raises ConfigurationError for a handler that cannot be used."""
        super().__init__(queue, progress, told)
        self._handlers = Registry.load()
        #: by digest of a private key, what is wrong with it
        self._keys: dict[bytes, str] = {}

    async def _take(self, batch: Sequence[Good]) -> None:
        self._told.imported += len(batch)
        for good in batch:
            self._count(good.host, good.kind)

    def _problem(self, row: SendQueueRow) -> str:
        try:
            parse_inbox(row.destination, allow_http=True)
        except InvalidInbox as error:
            return f"destination {error.problem}"
        try:
            origin_of(row.key_id)
        except InvalidKey as error:
            return f"actor, the id of the key, {error.problem}"
        try:
            self._handlers.rules(parse_activity(row.payload.encode(), max_bytes=sys.maxsize))
        except InvalidActivity as error:
            return f"payload: {error.field} {error.problem}"
        except HandlerFailed as error:
            return f"payload: {error}"
        return self._key_problem(row.private_key)

    def _key_problem(self, pem: str) -> str:
        """Of the key that a row brings; without one the server has it."""
        if not pem:
            return ""
        digest = hashlib.sha256(pem.encode(errors="replace")).digest()
        if digest not in self._keys:
            if len(self._keys) >= _MOST_KEYS:
                self._keys.clear()
            try:
                load_private_key(pem)
                self._keys[digest] = ""
            except InvalidKey as error:
                self._keys[digest] = f"private_key {error.problem}"
        return self._keys[digest]
