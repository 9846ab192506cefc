"""Settings that stand in files, as platforms hand out secrets."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

from fedsvc.errors import ConfigurationError

#: setting -> setting with the name of a file that says it instead; read once, at start
URLS: Final = {"redis_url": "redis_url_file", "database_url": "database_url_file"}


def read_file(variable: str, name: str) -> bytes:
    """What the file `name` holds. Raises ConfigurationError about `variable`, without the name: it may be the
    secret itself, put there by mistake."""
    try:
        return Path(name).read_bytes()
    except (OSError, ValueError) as error:
        raise ConfigurationError(variable, f"cannot be read: {_why(error)}") from None


def read_setting(variable: str, name: str) -> str:
    """What the file `name` says, without white space around. Raises as `read_file`."""
    try:
        text = read_file(variable, name).decode().strip()
    except UnicodeDecodeError:
        raise ConfigurationError(variable, "is not text in UTF-8") from None
    if not text:
        raise ConfigurationError(variable, "is empty")
    return text


def _why(error: OSError | ValueError) -> str:
    """ValueError: the name has a NUL."""
    return getattr(error, "strerror", None) or str(error)


def urls_from_files(
    values: Mapping[str, Any], overrides: Mapping[str, Any], variables: Mapping[str, str]
) -> tuple[dict[str, Any], list[ConfigurationError]]:
    """`values` with URLs taken from the files that they name, and what is wrong with that; `variables`: names
    of settings as users write them."""
    found, problems = dict(values), []
    for url, file in URLS.items():
        name = found.pop(file, "")
        if not name or url in overrides:
            continue
        if url in values:
            problems.append(ConfigurationError(variables[file], f"set it or {variables[url]}, not both"))
            continue
        try:
            found[url] = read_setting(variables[file], name)
        except ConfigurationError as error:
            problems.append(error)
    return found, problems


def check_authorities(variable: str, ca_file: str) -> None:
    """Of a setting that names a file of certificate authorities, or none: a bad one should end us at once,
    not whoever needs it later. Raises ConfigurationError."""
    if not ca_file:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=ca_file)
    except ssl.SSLError:  # an OSError too; what OpenSSL says of it helps nobody
        raise ConfigurationError(variable, f"{ca_file} holds no certificates in PEM") from None
    except (OSError, ValueError) as error:
        raise ConfigurationError(variable, f"{ca_file} cannot be read: {_why(error)}") from None


def check_own_certificate(
    variable: str, cert_file: str, key_file: str, password: str | None = None, *, key_variable: str = ""
) -> None:
    """Of a setting that names a certificate of ours and, in the same file or another, its key: as with
    authorities. `password`: None where none can be given; `key_variable`: the setting that names the key's
    file, if it is another. Raises ConfigurationError."""
    of_key = key_variable or variable

    def encrypted() -> NoReturn:
        """In place of OpenSSL's question for a password, which waits for an answer at the terminal."""
        missing = "the key in clear is needed" if password is None else "no password is given"
        raise ConfigurationError(of_key, f"{key_file or cert_file} is encrypted, and {missing}")

    for setting, name in ((variable, cert_file), (of_key, key_file)):
        if name:
            read_file(setting, name)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(
            cert_file, key_file or None, password=password or encrypted
        )
    except (OSError, ValueError):
        found = f"{cert_file} is no certificate in PEM with its key"
        raise ConfigurationError(variable, f"{found} in {key_file}" if key_file else found) from None
