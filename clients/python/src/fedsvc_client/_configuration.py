"""How an application says which server to call: in the environment, or in Flask's configuration.

    FEDSVC_TARGET          HOST:PORT of the server, IP addresses of several with commas between, or
                           any gRPC target such as dns:///fedsvc:50051
    FEDSVC_TOKEN           token, as `fedsvc tokens new` printed it
    FEDSVC_TOKEN_FILE      file with that token, instead
    FEDSVC_TLS_CA          file with the authorities that the server's certificate is trusted by
    FEDSVC_CLIENT_TLS      true: TLS, and the system's authorities are trusted
    FEDSVC_CLIENT_CERT     file with a certificate of our own, for a server that wants one
    FEDSVC_CLIENT_KEY      file with its key
    FEDSVC_CLIENT_TIMEOUT  seconds for one call, repetitions included (10)
    FEDSVC_CLIENT_DATABASE_URL  database of the outbox, for the command fedsvc-outbox

Within a Flask application context its configuration comes first, by the same names. Flask is not imported for
that."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsvc_client._channel import TLS, authorities_of, channel_target, channel_token, check_pair, pem_of
from fedsvc_client._exceptions import ConfigurationError
from fedsvc_client._sync import FedsvcClient

#: all settings of the client that the table above names
SETTINGS = (
    "FEDSVC_TARGET",
    "FEDSVC_TOKEN",
    "FEDSVC_TOKEN_FILE",
    "FEDSVC_TLS_CA",
    "FEDSVC_CLIENT_TLS",
    "FEDSVC_CLIENT_CERT",
    "FEDSVC_CLIENT_KEY",
    "FEDSVC_CLIENT_TIMEOUT",
    "FEDSVC_CLIENT_DATABASE_URL",
)
_YES, _NO = frozenset({"1", "true", "yes", "on"}), frozenset({"", "0", "false", "no", "off"})


@dataclass(frozen=True)
class Configuration:
    """Which server to call, and as whom."""

    target: str
    token: str = ""
    #: seconds
    timeout: float = 10.0
    tls: TLS | None = None

    def __repr__(self) -> str:
        return f"Configuration({self.target!r})"

    @classmethod
    def read(cls, environ: Mapping[str, str] | None = None) -> Configuration:
        """Of the environment, or of Flask's configuration where there is one. Raises ConfigurationError."""
        get = lookup(os.environ if environ is None else environ)
        target = get("FEDSVC_TARGET")
        if not target:
            raise ConfigurationError("FEDSVC_TARGET is not set: HOST:PORT of the fedsvc server")
        _checked("FEDSVC_TARGET", channel_target, target)
        return cls(target, _token(get), _timeout(get), _tls(get))

    def connect(self) -> FedsvcClient:
        """A client of one's own, to be closed. It connects at its first call."""
        return FedsvcClient(
            self.target, self.token or None, timeout=self.timeout, tls=self.tls if self.tls else False
        )


def lookup(environ: Mapping[str, str]) -> Callable[[str], str]:
    """What tells a setting by its name, without white space around: as Flask's configuration has it, where
    there is one, else as `environ` does; empty for none."""
    configured: Mapping[str, Any] = {}
    flask = sys.modules.get("flask")
    if flask is not None and flask.has_app_context():
        configured = flask.current_app.config

    def get(name: str) -> str:
        value = configured.get(name)
        return str(environ.get(name, "") if value is None else value).strip()

    return get


def _token(get: Callable[[str], str]) -> str:
    path = get("FEDSVC_TOKEN_FILE")
    if not path:
        return _checked("FEDSVC_TOKEN", channel_token, get("FEDSVC_TOKEN"))
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or type(error).__name__
        raise ConfigurationError(f"FEDSVC_TOKEN_FILE: {path}: {problem}") from None
    return _checked("FEDSVC_TOKEN_FILE", channel_token, text)


def _checked(name: str, check: Callable[[str], str], text: str) -> str:
    """What `check` makes of a setting."""
    try:
        return check(text)
    except ValueError as error:
        raise ConfigurationError(f"{name}: {error}") from None


def _timeout(get: Callable[[str], str]) -> float:
    text = get("FEDSVC_CLIENT_TIMEOUT") or "10"
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 3600:
        raise ConfigurationError(f"FEDSVC_CLIENT_TIMEOUT: {text!r} is no number of seconds up to 3600")
    return seconds


def _tls(get: Callable[[str], str]) -> TLS | None:
    files = {name: get(name) for name in ("FEDSVC_TLS_CA", "FEDSVC_CLIENT_CERT", "FEDSVC_CLIENT_KEY")}
    wanted = get("FEDSVC_CLIENT_TLS").lower()
    if wanted not in _YES | _NO:
        raise ConfigurationError(f"FEDSVC_CLIENT_TLS: {wanted!r} is neither true nor false")
    for name, path in files.items():
        try:
            (authorities_of if name == "FEDSVC_TLS_CA" else pem_of)(path or None)
        except ConfigurationError as error:
            raise ConfigurationError(f"{name}: {error}") from None
    authorities, certificate, key = files.values()
    if bool(certificate) != bool(key):
        raise ConfigurationError("FEDSVC_CLIENT_CERT and FEDSVC_CLIENT_KEY belong together")
    try:
        check_pair(certificate or None, key or None)
    except ConfigurationError as error:
        raise ConfigurationError(f"FEDSVC_CLIENT_KEY: {error}") from None
    if wanted not in _YES and not authorities and not certificate:
        return None
    return TLS(authorities or None, certificate or None, key or None)


#: of what was configured at one time or another; a token that is rotated leaves no connections behind
_MOST_CLIENTS = 8
_clients: dict[Configuration, FedsvcClient] = {}
_lock = threading.Lock()


def _renew_lock() -> None:
    # A thread that does not exist here may have held it.
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)


def shared_client() -> FedsvcClient:
    """The client of this process for what is configured; the same at each call. After a fork it connects
    anew.

    Raises ConfigurationError.
    """
    configuration = Configuration.read()
    client = _clients.get(configuration)
    if client is None:
        with _lock:
            client = _clients.get(configuration) or configuration.connect()
            _clients[configuration] = client
            if len(_clients) > _MOST_CLIENTS:
                # Whoever has a call under way still holds it; its connection ends with it.
                del _clients[next(iter(_clients))]
    return client
