"""Bearer tokens: how they are made, kept and told apart.

A token is 256 random bits behind a prefix that scanners for leaked secrets can find. Only its SHA-256 is
kept: of something that cannot be guessed, a plain hash gives nothing away. A name may have several tokens, so
that one can be replaced without a moment in which none is valid.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from typing import Final

import structlog

from fedsvc.config import Settings
from fedsvc.domain.inbox import parse_host
from fedsvc.errors import ConfigurationError
from fedsvc.server.caller import Caller, Scope
from fedsvc.watched_files import WatchedFiles

log = structlog.get_logger(__name__)

PREFIX: Final = "fedsvc_"
#: bytes that are random
_RANDOM: Final = 32
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HASH: Final = re.compile(r"[0-9a-f]{64}")
#: characters of a token, at most
_LONGEST: Final = 512


@dataclass(frozen=True, slots=True)
class Entry:
    caller: Caller
    #: SHA-256 of the token
    digest: bytes


def new_token() -> str:
    return PREFIX + secrets.token_urlsafe(_RANDOM)


def digest_of(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="surrogatepass")).digest()


def entry_text(caller: Caller, token: str) -> str:
    """As FEDSVC_TOKENS has it."""
    scopes = "+".join(sorted(caller.scopes))
    origins = "*" if caller.origins is None else "+".join(sorted(caller.origins))
    return f"{caller.name}:{scopes}:{origins}:{digest_of(token).hex()}"


def parse_entries(text: str) -> list[Entry]:
    """Raises ValueError, which tells the place of a bad entry, never what it says."""
    parts = text.replace(",", " ").split()
    return [_entry(part, f"entry {place}") for place, part in enumerate(parts, 1)]


def parse_caller(name: str, scopes: str, origins: str) -> Caller:
    """Of the parts of an entry. Raises ValueError."""
    if not _NAME.fullmatch(name):
        raise ValueError("the name is not made of at most 64 letters, digits, dots, dashes and underscores")
    granted = frozenset(scopes.split("+"))
    unknown = granted - frozenset(Scope)
    if unknown:
        raise ValueError(f"the scopes are not some of {', '.join(Scope)}, joined by +")
    if origins == "*":
        return Caller(name, frozenset(Scope(scope) for scope in granted), None)
    hosts = frozenset(_origin(host) for host in origins.split("+"))
    return Caller(name, frozenset(Scope(scope) for scope in granted), hosts)


def _entry(text: str, place: str) -> Entry:
    try:
        name, scopes, rest = text.split(":", 2)
        origins, digest = rest.rsplit(":", 1)
    except ValueError:
        raise ValueError(f"{place} is not NAME:SCOPES:ORIGINS:SHA256") from None
    if not _HASH.fullmatch(digest):
        raise ValueError(f"{place} does not end with a SHA-256 in hex: tokens are never kept in clear")
    try:
        return Entry(parse_caller(name, scopes, origins), bytes.fromhex(digest))
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None


def _origin(host: str) -> str:
    try:
        return parse_host(host)
    except ValueError as error:
        raise ValueError(f"an origin {error}") from None


class TokenBook:
    """The tokens that are valid now; without any, everybody is let in."""

    def __init__(self, settings: Settings) -> None:
        """Raises ConfigurationError."""
        self._settings = settings
        self._variable = "FEDSVC_TOKENS" if settings.tokens.get_secret_value() else "FEDSVC_TOKENS_FILE"
        self._file = "" if settings.tokens.get_secret_value() else settings.tokens_file
        self._watched = WatchedFiles([self._file])
        self._take(self._read())

    @property
    def open(self) -> bool:
        """There are no tokens: nobody needs one."""
        return not self._entries

    @property
    def callers(self) -> int:
        """How many there are, each with one token or several."""
        return self._callers

    @staticmethod
    def digest(token: str) -> bytes:
        """Of what a caller says is its token, however long: what `identify` takes."""
        return digest_of(token[:_LONGEST])

    def identify(self, digest: bytes) -> Caller | None:
        """Whose token has this digest; None if nobody's. All are compared, each in constant time."""
        self._look()
        found: Caller | None = None
        for entry in self._entries:
            if hmac.compare_digest(entry.digest, digest):
                found = entry.caller
        return found

    def _look(self) -> None:
        """Read the file again if it has changed. If it is bad, what was valid before stays valid."""
        entries = self._watched.read_again(
            self._read, lambda problem: log.error("tokens_not_read", problem=problem)
        )
        if entries is not None:
            self._take(entries)
            log.info("tokens_read", callers=sorted({entry.caller.name for entry in entries}))

    def _take(self, entries: list[Entry]) -> None:
        self._entries = entries
        self._callers = len({entry.caller.name for entry in entries})

    def _read(self) -> list[Entry]:
        text = self._settings.secret("tokens")
        try:
            entries = parse_entries(text)
        except ValueError as error:
            raise ConfigurationError(self._variable, str(error)) from None
        if text and not entries:
            raise ConfigurationError(self._variable, "has no entry")
        return entries
