"""Settings that stand in files, as platforms hand out secrets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from fedsvc.errors import ConfigurationError

#: setting -> setting with the name of a file that says it instead; read once, at start
URLS: Final = {"redis_url": "redis_url_file", "database_url": "database_url_file"}


def read_setting(variable: str, name: str) -> str:
    """What the file `name` says, without white space around. Raises ConfigurationError about `variable`."""
    try:
        text = Path(name).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(variable, f"cannot be read: {type(error).__name__}") from None
    if not text.strip():
        raise ConfigurationError(variable, "is empty")
    return text.strip()


def with_urls_from_files(
    values: Mapping[str, Any], overrides: Mapping[str, Any], variables: Mapping[str, str]
) -> dict[str, Any]:
    """`values` with URLs taken from the files that they name; `variables`: names of settings as users write
    them. Raises ConfigurationError, also if a URL is given both ways."""
    found = dict(values)
    for url, file in URLS.items():
        name = found.pop(file, "")
        if not name or url in overrides:
            continue
        if url in values:
            raise ConfigurationError(variables[file], f"set it or {variables[url]}, not both")
        found[url] = read_setting(variables[file], name)
    return found
