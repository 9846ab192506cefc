"""Sessions that no server keeps: a sealed cookie says with which token somebody has signed in, and when.

The cookie is encrypted (AES-256-GCM) under keys derived from the key encryption keys, which all servers
share, so that any of them opens it. It carries the token's SHA-256, never the token, and is held against the
valid tokens at each request: a session ends with its token. Forms carry a value sealed for the same session.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from fedsvc.domain.keys import KeyCipher
from fedsvc.errors import KeyUnavailable

PURPOSE: Final = "fedsvc dashboard"
_COOKIE: Final = b"session"
_FORM: Final = b"form"
_ID_BYTES: Final = 16
_TIME_BYTES: Final = 8
_DIGEST_BYTES: Final = 32
#: sessions that were ended here and whose time is not over, at most
_MOST_ENDED: Final = 10_000
#: characters of a cookie or form value that is looked at
_LONGEST: Final = 512


@dataclass(frozen=True, slots=True)
class Session:
    id: bytes
    #: seconds since the epoch
    begun: int
    #: SHA-256 of the token that opened it; empty as long as nobody has signed in
    digest: bytes = b""


class Sessions:
    def __init__(self, cipher: KeyCipher, lifetime_s: int, clock: Callable[[], float] = time.time) -> None:
        self._cipher = cipher
        self._lifetime_s = lifetime_s
        self._clock = clock
        self._ended: OrderedDict[bytes, int] = OrderedDict()

    def begin(self, digest: bytes = b"") -> Session:
        return Session(secrets.token_bytes(_ID_BYTES), int(self._clock()), digest)

    def seal(self, session: Session) -> str:
        """The cookie's value."""
        plain = session.id + session.begun.to_bytes(_TIME_BYTES, "big") + session.digest
        return _text(self._cipher.encrypt(plain, context=_COOKIE))

    def open(self, value: str) -> Session | None:
        """None if we did not seal it, its time is over, or it was ended."""
        plain = self._opened(value, _COOKIE)
        if len(plain) not in {_ID_BYTES + _TIME_BYTES, _ID_BYTES + _TIME_BYTES + _DIGEST_BYTES}:
            return None
        id, rest = plain[:_ID_BYTES], plain[_ID_BYTES:]
        session = Session(id, int.from_bytes(rest[:_TIME_BYTES], "big"), rest[_TIME_BYTES:])
        age = self._clock() - session.begun
        # Clocks of several servers differ a little.
        if not -60 <= age < self._lifetime_s or id in self._ended:
            return None
        return session

    def end(self, session: Session) -> None:
        """This process takes it no more; the browser is told to forget it."""
        self._ended[session.id] = session.begun
        while len(self._ended) > _MOST_ENDED:
            self._ended.popitem(last=False)

    def form_value(self, session: Session) -> str:
        """What a form of this session carries; another one each time."""
        return _text(self._cipher.encrypt(session.id, context=_FORM))

    def is_form_of(self, session: Session, value: str) -> bool:
        return hmac.compare_digest(self._opened(value, _FORM), session.id)

    def _opened(self, value: str, context: bytes) -> bytes:
        if len(value) > _LONGEST:
            return b""
        try:
            return self._cipher.decrypt(
                base64.b64decode(value, altchars=b"-_", validate=True), context=context
            )
        except (binascii.Error, ValueError, KeyUnavailable):
            return b""


class Attempts:
    """How often an address may try to sign in with a wrong token. Bounded; each process counts by itself."""

    #: wrong ones within the window
    MOST: Final = 10
    #: seconds
    WINDOW: Final = 60.0
    _ADDRESSES: Final = 1024

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failed: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def blocked(self, address: str) -> bool:
        since, count = self._failed.get(address, (0.0, 0))
        return count >= self.MOST and self._clock() - since < self.WINDOW

    def fail(self, address: str) -> None:
        now = self._clock()
        since, count = self._failed.pop(address, (now, 0))
        if now - since >= self.WINDOW:
            since, count = now, 0
        self._failed[address] = (since, count + 1)
        while len(self._failed) > self._ADDRESSES:
            self._failed.popitem(last=False)


def _text(sealed: bytes) -> str:
    return base64.urlsafe_b64encode(sealed).decode()
