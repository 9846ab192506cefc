"""How client commands reach the server."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from fedsvc.config import Settings
from fedsvc.errors import ConfigurationError

if TYPE_CHECKING:
    from fedsvc_client import FedsvcClient


def target_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--target HOST:PORT`."""
    return click.option(
        "--target", metavar="HOST:PORT", help="The server to call (FEDSVC_TARGET, or FEDSVC_LISTEN)."
    )(command)


def connect(target: str | None) -> FedsvcClient:
    """Raises ConfigurationError, or ClickException if the client is not installed."""
    try:
        from fedsvc_client import TLS, FedsvcClient
    except ImportError:
        raise click.ClickException("this command needs the package fedsvc-client") from None
    settings = Settings.from_environment()
    tls = TLS(ca_file=settings.tls_ca) if settings.tls_ca else False
    place = target or settings.target or str(settings.listen)
    try:
        return FedsvcClient(place, settings.secret("token") or None, timeout=5.0, tls=tls)
    except ValueError as error:
        raise ConfigurationError("--target" if target else "FEDSVC_TARGET", str(error)) from None
