"""How client commands reach the server."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import click

from fedsvc.config import Settings
from fedsvc.config_files import check_authorities
from fedsvc.errors import ConfigurationError

if TYPE_CHECKING:
    from fedsvc_client import FedsvcClient

#: how gRPC says what became of a connection; the last part is what people can use
_NO_CONNECTION: Final = re.compile(
    r"connections to all backends failing; last error: \w+: \S+: (?:Failed to connect to remote host: )?(.*)"
)


def target_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--target HOST:PORT`."""
    return click.option(
        "--target", metavar="HOST:PORT", help="The server to call (FEDSVC_TARGET, or FEDSVC_LISTEN)."
    )(command)


@contextmanager
def connect(target: str | None) -> Iterator[FedsvcClient]:
    """The client of the server at `target`, or where the settings say.

    Raises ConfigurationError, or ClickException if the client is not installed, nobody answers, or the server
    asks for a token.
    """
    # gRPC tells on standard error in many lines what it then tells us, and we in one line.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        from fedsvc_client import TLS, FedsvcClient, PermissionDenied, Unavailable
    except ImportError:
        raise click.ClickException("this command needs the package fedsvc-client") from None
    settings = Settings.from_environment()
    token, token_setting = _token(settings)
    check_authorities("FEDSVC_TLS_CA", settings.tls_ca)
    tls = TLS(ca_file=settings.tls_ca) if settings.tls_ca else False
    place = target or settings.target or str(settings.listen)
    place_setting = "--target" if target else "FEDSVC_TARGET"
    try:
        client = FedsvcClient(place, token or None, timeout=5.0, tls=tls)
    except ValueError as error:
        raise ConfigurationError(place_setting, str(error)) from None
    try:
        with client:
            yield client
    except Unavailable as error:
        if error.reason:  # a server of ours has said so
            raise
        cause = _cause(str(error), bool(tls))
        raise click.ClickException(
            f"no fedsvc server answers at {place} ({place_setting}): {cause}"
        ) from None
    except PermissionDenied as error:
        if error.reason != "UNAUTHENTICATED":
            raise
        if not token:
            raise click.ClickException(
                "the server asks for a token: set FEDSVC_TOKEN or FEDSVC_TOKEN_FILE"
            ) from None
        raise ConfigurationError(token_setting, str(error)) from None


def _token(settings: Settings) -> tuple[str, str]:
    """The token, empty if there is none, and the setting that it is of. Raises ConfigurationError."""
    token = settings.secret("token").strip()
    setting = "FEDSVC_TOKEN" if settings.token.get_secret_value() else "FEDSVC_TOKEN_FILE"
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise ConfigurationError(setting, "is no token: there is more than one word or line in it")
    return token, setting


def _cause(told: str, tls: bool) -> str:
    """Why there is no connection, without what only gRPC understands."""
    if "errors resolving" in told:
        return "the name is not known"
    found = _NO_CONNECTION.fullmatch(told)
    cause = found[1] if found else told
    if "CERTIFICATE_VERIFY_FAILED" in cause or "Hostname Verification" in cause:
        return "its certificate is not one that FEDSVC_TLS_CA vouches for under this name"
    if "WRONG_VERSION_NUMBER" in cause:
        return "it does not speak TLS, which FEDSVC_TLS_CA turns on"
    if cause.startswith("Socket closed") and not tls:  # the client may add what to do in Python
        return "it hung up; if it speaks TLS, set FEDSVC_TLS_CA"
    return cause[:1].lower() + cause[1:]
