"""Key encryption keys that follow their file: one is put in another's place while all processes run.

A file comes to all processes at about the same time, not in the same moment. So a key that is new here, and
is to encrypt from now on, only opens at first: it encrypts once every process must have it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import structlog

from fedsvc.config import Settings
from fedsvc.domain.keys import KeyCipher
from fedsvc.errors import ConfigurationError
from fedsvc.watched_files import WatchedFiles

log = structlog.get_logger(__name__)

#: seconds within which all processes have read a file that was changed; Kubernetes takes a minute and a half
SETTLED_S: Final = 180.0


class WatchedCipher(KeyCipher):
    def __init__(
        self, settings: Settings, purpose: str = "", clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`purpose`: as `KeyCipher.parse` has it. Raises ConfigurationError."""
        self._settings = settings
        self._purpose = purpose
        self._clock = clock
        by_value = settings.key_encryption_keys.get_secret_value()
        self._watched = WatchedFiles([] if by_value else [settings.key_encryption_keys_file], clock)
        #: the one that is to encrypt, and when
        self._coming = b""
        self._due = 0.0
        super().__init__(self._read())

    @property
    def current(self) -> bytes:
        self._look()
        return super().current

    def encrypt(self, plaintext: bytes, *, context: bytes) -> bytes:
        self._look()
        return super().encrypt(plaintext, context=context)

    def decrypt(self, sealed: bytes, *, context: bytes) -> bytes:
        self._look()
        return super().decrypt(sealed, context=context)

    def needs_rotation(self, sealed: bytes) -> bool:
        self._look()
        return super().needs_rotation(sealed)

    def knows(self, sealed: bytes) -> bool:
        self._look()
        return super().knows(sealed)

    def _look(self) -> None:
        """Read the file again if it has changed. If it is bad, the keys of before go on."""
        if self._coming and self._clock() >= self._due:
            self._current, self._coming = self._coming, b""
        keys = self._watched.read_again(
            self._read, lambda problem: log.error("encryption_keys_not_read", problem=problem)
        )
        if keys is None:
            return
        before, coming, known = self._current, self._coming, set(self._ciphers)
        super().__init__(keys)
        self._coming = b""
        if before in self._ciphers and (self._current == coming or self._current not in known):
            if self._current != coming:  # a file that is written a second time puts nothing off, nor forward
                self._due = self._clock() + SETTLED_S
            self._coming, self._current = self._current, before
        log.info("encryption_keys_read", keys=len(keys))

    def _read(self) -> list[bytes]:
        try:
            return self.parse(self._settings.key_encryption_secret(), purpose=self._purpose)
        except ValueError as error:
            by_value = self._settings.key_encryption_keys.get_secret_value()
            field = "key_encryption_keys" if by_value else "key_encryption_keys_file"
            raise ConfigurationError(self._settings.variable(field), str(error)) from None
