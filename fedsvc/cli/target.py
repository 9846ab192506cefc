"""How client commands reach the server."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from fedsvc.config import Settings

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
        from fedsvc_client import FedsvcClient
    except ImportError:
        raise click.ClickException("this command needs the package fedsvc-client") from None
    if not target:
        settings = Settings.from_environment()
        target = settings.target or str(settings.listen)
    return FedsvcClient(target, timeout=5.0)
