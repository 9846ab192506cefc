"""What may stand in DATABASE_URL."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from servers.certificates import self_signed

from fedsvc.archive.address import parse
from fedsvc.errors import ConfigurationError


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A file of a certificate and its key."""
    file = tmp_path / "a chain.pem"
    file.write_bytes(self_signed("db.example").read_bytes())
    return file


def read(database_url: str) -> tuple[str, dict[str, Any]]:
    url, arguments = parse(database_url, 5)
    return url.render_as_string(hide_password=False), arguments


def arguments(query: str) -> dict[str, Any]:
    return read(f"postgresql://u:p@h/db?{query}")[1]


@pytest.mark.parametrize(
    ("given", "driver"),
    [
        ("sqlite:///a.db", "sqlite+aiosqlite:///a.db"),
        ("sqlite:////var/a.db", "sqlite+aiosqlite:////var/a.db"),
        ("postgres://u:p@h/db", "postgresql+asyncpg://u:p@h/db"),
        ("postgresql://u:p@h:5/db?sslmode=require", "postgresql+asyncpg://u:p@h:5/db"),
        ("postgresql+psycopg://u:p@h/db", "postgresql+asyncpg://u:p@h/db"),
        ("postgresql://u:p@/db?host=/run/pg", "postgresql+asyncpg://u:p@/db?host=%2Frun%2Fpg"),
        ("postgresql://u:a,b@h1:1,h2,[::1]:3/db", "postgresql+asyncpg://u:a%2Cb@/db?host=h1%2Ch2%2C%3A%3A1&port=1%2C5432%2C3"),
    ],
)  # fmt: skip
def test_database_urls_are_read(given: str, driver: str) -> None:
    assert read(given)[0] == driver


def test_nothing_said_is_connected_to_with_a_deadline_and_under_our_name() -> None:
    assert arguments("") == {"timeout": 5, "server_settings": {"application_name": "fedsvc"}}


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("sslmode=require", {"dsn": "postgresql://?sslmode=require"}),
        ("ssl=verify-full", {"dsn": "postgresql://?sslmode=verify-full"}),
        ("target_session_attrs=read-write", {"dsn": "postgresql://?target_session_attrs=read-write"}),
        ("user=%26&password=%3D&dbname=d", {"dsn": "postgresql://?user=%26&password=%3D&dbname=d"}),
        ("connect_timeout=17", {"timeout": 17}),
        ("statement_cache_size=0&prepared_statement_cache_size=0",
         {"statement_cache_size": 0, "prepared_statement_cache_size": 0}),
        ("application_name=a+b", {"server_settings": {"application_name": "a b"}}),
        ("fallback_application_name=b", {"server_settings": {"application_name": "b"}}),
        ("options=-c%20search_path%3Dx",
         {"server_settings": {"application_name": "fedsvc", "options": "-c search_path=x"}}),
        ("channel_binding=prefer&gssencmode=disable&sslsni=1&client_encoding=utf8", {}),
    ],
)  # fmt: skip
def test_parameters_reach_the_driver(query: str, expected: dict[str, Any]) -> None:
    nothing = {"timeout": 5, "server_settings": {"application_name": "fedsvc"}}
    assert arguments(query) == nothing | expected


def test_certificates_of_the_machine_are_trusted_on_demand() -> None:
    context = arguments("sslmode=verify-full&sslrootcert=system")["ssl"]
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname


def test_files_of_certificates_reach_the_driver(certificate: Path) -> None:
    files = dict.fromkeys(("sslrootcert", "sslcert", "sslkey"), certificate)
    assert arguments(urlencode(files))["dsn"] == f"postgresql://?{urlencode(files)}"
    context = arguments(urlencode(files | {"sslrootcert": "system"}))
    assert "dsn" not in context


def test_tls_without_a_question_first_needs_tls() -> None:
    assert arguments("sslmode=require&sslnegotiation=direct")["direct_tls"] is True


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("sslmode=maybe", "sslmode"),
        ("sslmode=require&sslmode=disable", "sslmode"),
        ("target_session_attrs=writable", "target_session_attrs"),
        ("connect_timeout=0", "connect_timeout"),
        ("connect_timeout=soon", "connect_timeout"),
        ("statement_cache_size=-1", "statement_cache_size"),
        ("sslrootcert=/none/root.crt", "sslrootcert"),
        ("sslrootcert=system&sslmode=require", "sslrootcert"),
        ("sslrootcert=system&sslcrl=/etc/hostname", "sslcrl"),
        (f"sslrootcert={__file__}", "sslrootcert"),
        (f"sslcert={__file__}", "sslcert"),
        (f"sslkey={__file__}", "sslkey"),
        ("sslnegotiation=direct", "sslnegotiation"),
        ("channel_binding=require", "channel_binding"),
        ("client_encoding=latin1", "client_encoding"),
        ("keepalives_idle=30", "keepalives_idle"),
        ("search_path=x", "search_path"),
        ("service=x", "service"),
        ("host=a,b&port=1,2,3", "host"),
    ],
)
def test_what_the_driver_cannot_do_is_an_error_that_names_it(query: str, name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"DATABASE_URL: parameter {name} ") as refused:
        arguments(f"password=geheim&{query}")
    assert "geheim" not in str(refused.value)


@pytest.mark.parametrize(
    "given",
    [
        "",
        "nonsense",
        "sqlite://",
        "sqlite:///a.db?mode=ro",
        "mysql://u:geheim@h/db",
        "postgresql:u:geheim@h",
        "postgresql://u:geheim@h:abc/db",
        "postgresql://u:geheim@h:1,h:abc/db",
        "postgresql://u:geheim@,/db",
    ],
)
def test_other_database_urls_are_refused_without_their_password(given: str) -> None:
    with pytest.raises(ConfigurationError, match="DATABASE_URL") as refused:
        read(given)
    assert "geheim" not in str(refused.value)
