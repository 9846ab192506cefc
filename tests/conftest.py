"""Fixtures for all tests."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import grpc
import hypothesis
import pytest
import uvloop
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from servers.postgres import PostgresServer, postgres_server
from servers.unused_ports import unused_port
from servers.valkey import ValkeyServer, valkey_server

from fedsvc.domain.keys import KeyCipher

# Tests start processes while others' channels are open. gRPC's handlers of fork() would then run in a process
# that is about to become another one, and may take it down. Only this process is without them, as gRPC looks
# when it is first used; those that tests start have them.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
grpc.insecure_channel("127.0.0.1:1").close()
del os.environ["GRPC_ENABLE_FORK_SUPPORT"]

# The machine may be busy, and a run must be repeatable: examples follow from the test alone.
hypothesis.settings.register_profile("fedsvc", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("fedsvc")

_numbers = itertools.count(1)


#: what runs on asyncio's own loop at users', or is tested by looking into it
_ON_ASYNCIO = (
    "hostile/",
    "e2e/",
    "test_client.py",
    "test_client_refusals.py",
    "test_outcome_consumer.py",
    "test_supervisor.py",
)


def pytest_asyncio_loop_factories(
    item: pytest.Item,
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Servers and workers run on uvloop, and so do their tests."""
    if any(part in item.nodeid for part in _ON_ASYNCIO):
        return {"asyncio": asyncio.new_event_loop}
    return {"uvloop": uvloop.new_event_loop}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is short comes last, so that processes of tests that run side by side have work until all have."""
    items.sort(key=lambda item: "unit/" in item.nodeid)


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    """One real server for all tests that do not hurt it."""
    with valkey_server(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture(scope="session")
def postgres_template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What `postgres_server` copies instead of making it again; whoever is first makes it."""
    template = tmp_path_factory.mktemp("postgres") / "template"
    yield template
    shutil.rmtree(template, ignore_errors=True)


@pytest.fixture(scope="module")
def postgres(postgres_template: Path) -> Iterator[PostgresServer]:
    """A real server for the tests of one module, which may stop and start it."""
    with postgres_server(postgres_template) as server:
        yield server


@pytest.fixture
def namespace() -> str:
    """First part of all keys of this test."""
    return f"t{next(_numbers)}"


@pytest.fixture(scope="session")
def rsa_pem() -> str:
    """A private RSA key of 2048 bits, PKCS#8."""
    key = rsa.generate_private_key(65537, 2048)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


@pytest.fixture(scope="session")
def encryption_key() -> str:
    """A key encryption key."""
    return KeyCipher.generate()


@pytest.fixture
def free_port() -> int:
    """A port on loopback that nobody uses now."""
    return unused_port()
