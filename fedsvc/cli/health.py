"""`fedsvc health`: what a container's health check runs."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Final

import click

from fedsvc.cli.output import emit, json_option
from fedsvc.config import Settings
from fedsvc.config_types import Address
from fedsvc.errors import FedsvcError

#: seconds within which the process must answer
_DEADLINE: Final = 5.0
#: where one listens on all addresses -> where it is reached
_REACHED: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104


class NotHealthy(FedsvcError):
    """A process of ours does not answer, or says that it is not well."""


@click.command()
@click.option(
    "--live", is_flag=True, help="Ask whether it runs (/healthz), not whether it can work (/readyz)."
)
@json_option
def health(live: bool, as_json: bool) -> None:
    """Ask the server or worker at FEDSVC_HTTP_LISTEN how it is: exit code 0 if it is well."""
    address = Settings.from_environment().http_listen
    reached = Address(_REACHED.get(address.host, address.host), address.port)
    url = f"http://{reached}/{'healthz' if live else 'readyz'}"
    # A proxy of the environment has no business here.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=_DEADLINE) as answer:
            told = json.load(answer)
    except urllib.error.HTTPError as error:
        raise NotHealthy(f"{url}: {error.read(2000).decode(errors='replace')}") from None
    except (OSError, ValueError) as error:
        raise NotHealthy(f"{url}: {getattr(error, 'reason', None) or error}") from None
    emit(told, as_json, str(told.get("status", "ok")))
