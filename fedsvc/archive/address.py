"""What DATABASE_URL means: the parameters that PostgreSQL's own clients understand, for the driver that we
have. What it cannot do is an error that names the parameter, never something that is ignored."""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from typing import Any, Final, NoReturn
from urllib.parse import urlencode

from sqlalchemy import URL
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from fedsvc.errors import ConfigurationError

#: what asyncpg reads from an address of its own, and the values that it knows
_DRIVERS: Final[Mapping[str, frozenset[str]]] = {
    "sslmode": frozenset({"disable", "allow", "prefer", "require", "verify-ca", "verify-full"}),
    "ssl_min_protocol_version": frozenset({"TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"}),
    "ssl_max_protocol_version": frozenset({"TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"}),
    "target_session_attrs": frozenset(
        {"any", "primary", "standby", "read-write", "read-only", "prefer-standby"}
    ),
    "gsslib": frozenset({"gssapi", "sspi"}),
    "sslpassword": frozenset(),
    "krbsrvname": frozenset(),
    "user": frozenset(),
    "password": frozenset(),
    "dbname": frozenset(),
}
#: the same, of files that must be there
_FILES: Final = frozenset({"sslcert", "sslkey", "sslrootcert", "sslcrl", "passfile"})
#: caches of the driver, which some connection poolers want to be 0
_SIZES: Final = frozenset({"statement_cache_size", "prepared_statement_cache_size"})
#: parameters of which the driver does only these, without being told
_AS_IT_IS: Final[Mapping[str, frozenset[str]]] = {
    "channel_binding": frozenset({"disable", "prefer"}),
    "client_encoding": frozenset({"auto", "utf8", "UTF8", "utf-8", "UTF-8"}),
    "gssencmode": frozenset({"disable", "prefer"}),
    "keepalives": frozenset({"1"}),
    "load_balance_hosts": frozenset({"disable"}),
    "sslcompression": frozenset({"0"}),
    "sslnegotiation": frozenset({"postgres"}),
    "sslsni": frozenset({"1"}),
}
_HOSTS: Final = re.compile(r"(postgres(?:ql)?(?:\+\w+)?://(?:[^/?#]*@)?)([^@/?#]*,[^@/?#]*)(.*)", re.DOTALL)


def parse(database_url: str, connect_timeout: int) -> tuple[URL, dict[str, Any]]:
    """The URL for the async drivers, without parameters, and what to connect with beside it.

    `connect_timeout`: seconds to connect, unless the URL says so. Raises ConfigurationError, which never
    shows a password.
    """
    hosts: dict[str, str] = {}
    if several := _HOSTS.fullmatch(database_url):
        hosts = _hosts(several[2])
        database_url = several[1] + several[3]
    try:
        url = make_url(database_url)
    except (ArgumentError, ValueError):
        raise ConfigurationError("DATABASE_URL", "is not a database URL") from None
    family = url.drivername.split("+", 1)[0]
    if family == "sqlite":
        if not url.database or url.database == ":memory:":
            raise ConfigurationError("DATABASE_URL", "names no file: expected sqlite:///PATH")
        for name in url.query:
            _refuse(name, "is no parameter of SQLite here")
        return url.set(drivername="sqlite+aiosqlite"), {}
    if family not in ("postgresql", "postgres"):
        raise ConfigurationError("DATABASE_URL", f"{family} is not supported: use sqlite or postgresql")
    query = dict(url.query)
    # SQLAlchemy reads these itself, also several of them.
    kept = {name: query.pop(name) for name in ("host", "port") if name in query} | hosts
    parameters: dict[str, str] = {}
    for name, value in query.items():
        if not isinstance(value, str):
            _refuse(name, "is there more than once")
        parameters[{"ssl": "sslmode", "database": "dbname"}.get(name, name)] = value
    url = url.set(drivername="postgresql+asyncpg", query=kept)
    try:
        url.get_dialect()().create_connect_args(url)
    except (ArgumentError, ValueError):
        _refuse("host", "and port do not fit each other")
    return url, _arguments(parameters, connect_timeout)


def _hosts(text: str) -> dict[str, str]:
    """`a:1,b` as the parameters host and port."""
    names, ports = [], []
    for part in text.split(","):
        name, colon, port = part.rpartition(":")
        if not colon or part.endswith("]"):
            name, port = part, "5432"
        if not name or not port.isascii() or not port.isdigit() or int(port) > 65535:
            raise ConfigurationError("DATABASE_URL", "is not a database URL: expected HOST:PORT,HOST:PORT")
        names.append(name.strip("[]"))
        ports.append(port)
    return {"host": ",".join(names), "port": ",".join(ports)}


def _arguments(parameters: Mapping[str, str], connect_timeout: int) -> dict[str, Any]:
    """What to give to asyncpg. Raises ConfigurationError."""
    arguments: dict[str, Any] = {"timeout": connect_timeout}
    settings = {"application_name": parameters.get("fallback_application_name", "fedsvc")}
    drivers: dict[str, str] = {}
    for name, value in parameters.items():
        if name in ("application_name", "options"):
            settings[name] = value
        elif name == "connect_timeout":
            arguments["timeout"] = _number(name, value, 1)
        elif name in _SIZES:
            arguments[name] = _number(name, value, 0)
        elif name in _DRIVERS:
            if _DRIVERS[name] and value not in _DRIVERS[name]:
                _refuse(name, f"is none of {', '.join(sorted(_DRIVERS[name]))}")
            drivers[name] = value
        elif name in _FILES:
            if not (name == "sslrootcert" and value == "system"):
                _readable(name, value)
            drivers[name] = value
        elif name == "sslnegotiation" and value == "direct":
            arguments["direct_tls"] = True
        elif name in _AS_IT_IS:
            if value not in _AS_IT_IS[name]:
                _refuse(name, f"is supported as {' or '.join(sorted(_AS_IT_IS[name]))} only")
        elif name != "fallback_application_name":
            _refuse(name, "is not supported")
    _certificates(drivers)
    if "direct_tls" in arguments and drivers.get("sslmode") not in ("require", "verify-ca", "verify-full"):
        _refuse("sslnegotiation", "as direct needs sslmode=require, verify-ca or verify-full")
    if drivers.get("sslrootcert") == "system":
        arguments["ssl"] = _by_the_system(drivers)
    if drivers:
        arguments["dsn"] = f"postgresql://?{urlencode(drivers)}"
    return arguments | {"server_settings": settings}


def _certificates(drivers: Mapping[str, str]) -> None:
    """Whether files of certificates and keys are such, and go together. Raises ConfigurationError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for name in ("sslrootcert", "sslcrl"):
        if name in drivers and drivers[name] != "system":
            try:
                context.load_verify_locations(cafile=drivers[name])
            except (OSError, ValueError):
                _refuse(name, "is no PEM file of certificates")
    if "sslkey" in drivers and "sslcert" not in drivers:
        _refuse("sslkey", "has no sslcert beside it")
    if "sslcert" in drivers:
        _identify(context, drivers)


def _by_the_system(drivers: dict[str, str]) -> ssl.SSLContext:
    """Trust as the machine does, in place of what `drivers` say of it. Raises ConfigurationError."""
    if drivers.pop("sslmode", "verify-full") != "verify-full":
        _refuse("sslrootcert", "system needs sslmode=verify-full")
    context = ssl.create_default_context()
    for name in ("sslcrl", "ssl_min_protocol_version", "ssl_max_protocol_version"):
        if name in drivers:
            _refuse(name, "is not supported with sslrootcert=system")
    if "sslcert" in drivers:
        _identify(context, drivers)
    for name in ("sslrootcert", "sslcert", "sslkey", "sslpassword"):
        drivers.pop(name, None)
    return context


def _identify(context: ssl.SSLContext, drivers: Mapping[str, str]) -> None:
    try:
        context.load_cert_chain(
            drivers["sslcert"], drivers.get("sslkey"), password=lambda: drivers.get("sslpassword", "")
        )
    except (OSError, ValueError):
        _refuse("sslcert", "and sslkey (with sslpassword) are no certificate with its key")


def _number(name: str, value: str, least: int) -> int:
    if not value.isascii() or not value.isdigit() or not least <= int(value) <= 3600:
        _refuse(name, f"is no number from {least} to 3600")
    return int(value)


def _readable(name: str, path: str) -> None:
    try:
        with open(path, "rb"):
            pass
    except (OSError, ValueError) as error:
        _refuse(name, f"cannot be read: {type(error).__name__}")


def _refuse(name: str, problem: str) -> NoReturn:
    raise ConfigurationError("DATABASE_URL", f"parameter {name} {problem}")
