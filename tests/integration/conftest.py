"""Fixtures of the integration tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from fedsvc_client import FedsvcClient
from fedsvc_client.outbox import Outbox
from servers.archiving import System, opened
from servers.browser import TOKENS, Browser, browsing, chosen
from servers.calls import queue_request
from servers.front import Front, front
from servers.key_ring import KeyRing, key_ring
from servers.postgres import PostgresServer
from servers.queue import Queue, open_queue
from servers.scripted import Scripted, scripted
from servers.spilling import Desk, spilling
from servers.valkey import ValkeyServer

from fedsvc.config import Settings
from fedsvc.queue.key_keeper import KeyKeeper
from fedsvc.queue.key_registry import KeyRegistry
from fedsvc.server.caller import Caller, Scope
from fedsvc.server.tokens import entry_text


@pytest.fixture
def environment(valkey: ValkeyServer, namespace: str, encryption_key: str, tmp_path: Path) -> dict[str, str]:
    """What a server of this test needs to know, and nothing else."""
    return {
        "REDIS_URL": valkey.url,
        "DATABASE_URL": f"sqlite:///{tmp_path / 'archive.db'}",
        "FEDSVC_NAMESPACE": namespace,
        "FEDSVC_KEY_ENCRYPTION_KEYS": encryption_key,
        "FEDSVC_LISTEN": "127.0.0.1:0",
        "FEDSVC_HTTP_LISTEN": "127.0.0.1:0",
    }


@pytest.fixture
def limits() -> dict[str, str]:
    """Settings of `queue`, beside those that let a host take all there is; a module may have its own."""
    return {}


@pytest.fixture
async def queue(valkey: ValkeyServer, namespace: str, limits: dict[str, str]) -> AsyncIterator[Queue]:
    async with open_queue(valkey.url, namespace, **limits) as opened:
        yield opened


@pytest.fixture
async def ring(
    valkey: ValkeyServer, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[KeyRing]:
    """Registered keys, of which nothing is remembered and no use is waited for."""
    monkeypatch.setattr(KeyKeeper, "GRACE_MS", 0)
    monkeypatch.setattr(KeyRegistry, "FRESH", 0.0)
    async with key_ring(valkey.url, namespace) as ring:
        yield ring


@pytest.fixture
async def desk(valkey: ValkeyServer, namespace: str, tmp_path: Path) -> AsyncIterator[Desk]:
    """A queue whose backlogs go to SQL; a module may have another."""
    async with spilling(valkey.url, namespace, tmp_path) as desk:
        yield desk


@pytest.fixture
async def server(environment: dict[str, str]) -> AsyncIterator[Front]:
    """A server that knows nothing else."""
    async with front(Settings.from_environment(environment)) as running:
        yield running


@pytest.fixture
def request_of(rsa_pem: str) -> Any:
    """A good QueueActivityRequest, with changes."""
    return partial(queue_request, pem=rsa_pem)


@pytest.fixture
async def guarded(environment: dict[str, str], tmp_path: Path) -> AsyncIterator[Browser]:
    """Of the dashboard of a server with tokens."""
    entries = [entry_text(Caller("all"), TOKENS["all"])]
    entries += [
        entry_text(Caller(s, frozenset({Scope(s)})), TOKENS[s]) for s in ("deliver", "operate", "keys")
    ]
    entries.append(entry_text(Caller("one", origins=frozenset({"me.example"})), TOKENS["one"]))
    tokens = tmp_path / "tokens"
    tokens.write_text("\n".join(entries))
    settings = chosen(environment, FEDSVC_TOKENS_FILE=str(tokens))
    async with front(settings) as server, browsing(server) as browser:
        yield browser


@pytest.fixture
async def browser(environment: dict[str, str]) -> AsyncIterator[Browser]:
    """Of the dashboard of a server without tokens."""
    async with front(chosen(environment)) as server, browsing(server) as opened:
        yield opened


@pytest.fixture
def script() -> Iterator[Scripted]:
    """A server that does as the test tells it."""
    with scripted() as script:
        yield script


@pytest.fixture
def client(script: Scripted) -> Iterator[FedsvcClient]:
    """Of that server."""
    with FedsvcClient(script.target, timeout=2) as client:
        yield client


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sa.Engine]:
    """An application's database, of both kinds."""
    if request.param == "sqlite":
        engine = sa.create_engine(f"sqlite:///{tmp_path}/app.db", connect_args={"timeout": 30})
        # What is tested here needs no disk.
        sa.event.listen(engine, "connect", lambda dbapi, _: dbapi.execute("PRAGMA synchronous=OFF"))
    else:
        server: PostgresServer = request.getfixturevalue("postgres")
        engine = sa.create_engine(server.url.replace("postgresql:", "postgresql+psycopg:"))
    yield engine
    with engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE IF EXISTS fedsvc_outbox"))
    engine.dispose()


@pytest.fixture
def outbox(engine: sa.Engine) -> Outbox:
    """In that database."""
    outbox = Outbox()
    outbox.table.metadata.create_all(engine)
    return outbox


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of an archive, of both kinds."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'archive.db'}"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.url


@pytest.fixture
async def system(database_url: str, valkey: ValkeyServer, namespace: str) -> AsyncIterator[System]:
    async with opened(database_url, valkey, namespace) as system:
        yield system
