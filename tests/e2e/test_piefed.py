"""The drop-in where PyFedi runs: in requests of gunicorn's workers, forked before or after the first call,
and in tasks of Celery's forked workers; against a real server and worker."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from fedsvc_client import AsyncFedsvcClient, DeliveryState
from servers.inbox import InboxServer
from servers.processes import Fedsvc, descendants
from servers.valkey import ValkeyServer, valkey_server

TESTS = Path(__file__).parents[1]
SETTINGS = {"FEDSVC_ALLOW_HTTP": "true", "FEDSVC_ALLOWED_CIDRS": "127.0.0.0/8"}
LISTEN = ("--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0")
_LISTENING = re.compile(r"Listening at: (http://\S+)")


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    with valkey_server(tmp_path_factory.mktemp("broker")) as server:
        yield server


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with Fedsvc(tmp_path_factory.mktemp("dev"), "dev", *LISTEN, settings=SETTINGS) as fedsvc:
        yield fedsvc.ready()[0]


@pytest.fixture(scope="module")
def environment(
    broker: ValkeyServer, target: str, rsa_pem: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    key = tmp_path_factory.mktemp("app") / "key.pem"
    key.write_text(rsa_pem)
    kept = {k: v for k, v in os.environ.items() if not k.startswith("FEDSVC_")}
    ours = {"FEDSVC_TARGET": target, "BROKER": f"redis+socket://{broker.socket}", "KEY_FILE": str(key)}
    return kept | ours | {"PYTHONPATH": str(TESTS), "FULL_AP_CONTEXT": "1"}


@contextmanager
def running(environment: dict[str, str], log: Path, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends in order, and leaves none behind."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *command], env=environment, cwd=log.parent, stdout=output, stderr=output
        )
    try:
        yield process
    finally:
        below = descendants(process.pid)
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"{command[0]} does not end: {log.read_text()[-3000:]}") from None
        finally:
            for pid in below:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
        assert code == 0, log.read_text()[-3000:]


async def told(log: Path, pattern: re.Pattern[str], process: subprocess.Popen[bytes]) -> str:
    async with asyncio.timeout(60):
        while not (found := pattern.search(log.read_text())):
            assert process.poll() is None, log.read_text()[-3000:]
            await asyncio.sleep(0.05)
    return found[1]


async def post(session: aiohttp.ClientSession, url: str, *inboxes: str) -> Any:
    async with session.post(url, data=[("inbox", inbox) for inbox in inboxes]) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.json()


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(30)) as session:
        yield session


@pytest.mark.parametrize(
    ("workers", "call_before_fork"),
    [(("-k", "sync", "-w", "2", "--preload"), "1"), (("-k", "gthread", "-w", "2", "--threads", "4"), "")],
    ids=["sync, forked after a call", "gthread"],
)
async def test_it_delivers_from_requests_in_gunicorn(
    environment: dict[str, str],
    target: str,
    tmp_path: Path,
    session: aiohttp.ClientSession,
    workers: tuple[str, ...],
    call_before_fork: str,
) -> None:
    log = tmp_path / "gunicorn.log"
    command = ("gunicorn", "-b", "127.0.0.1:0", *workers, "servers.piefed_app:app")
    kind = workers[1]
    own = environment | {"CALL_BEFORE_FORK": call_before_fork}
    async with InboxServer(addresses=("127.71.0.1", "127.71.0.2")) as inbox:
        with running(own, log, *command) as process:
            url = await told(log, _LISTENING, process)
            answers = await asyncio.gather(
                *(post(session, f"{url}/vote/{kind}{n}", inbox.url("127.71.0.1")) for n in range(16))
            )
            assert all(answer["queued"] is True for answer in answers)
            places = (inbox.url("127.71.0.1"), inbox.url("127.71.0.2"))
            assert (await post(session, f"{url}/announce/{kind}", *places))["accepted"] == 2
            await inbox.wait_for(18)
            # A host that is paused has been sent nothing yet.
            async with AsyncFedsvcClient(target) as operator:
                await operator.pause_host("127.71.0.2")
                await post(session, f"{url}/vote/{kind}-regretted", places[1])
                await post(session, f"{url}/unvote/{kind}-regretted", places[1])
                for name in (f"{kind}-regretted", f"undo-{kind}-regretted"):
                    (page,) = (await operator.list_deliveries(f"https://me.example/{name}")).deliveries
                    assert page.state is DeliveryState.SUPERSEDED, "neither is sent"
                await operator.resume_host("127.71.0.2")
    assert len(inbox.received) == 18
    assert set(inbox.received.values()) == {1}
    assert all(len(json.loads(body)["@context"]) == 3 for _, body in inbox.received), "PieFed's own context"


async def test_it_delivers_from_tasks_in_celery_s_forked_workers(
    environment: dict[str, str], tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    command = ("celery", "-A", "servers.piefed_app:celery", "worker", "-P", "prefork", "-c", "2")
    serving = ("gunicorn", "-b", "127.0.0.1:0", "-w", "1", "servers.piefed_app:app")
    web = tmp_path / "gunicorn.log"
    async with InboxServer() as inbox:
        with (
            running(environment, tmp_path / "celery.log", *command, "--without-mingle", "--without-gossip"),
            running(environment, web, *serving) as process,
        ):
            url = await told(web, _LISTENING, process)
            for number in range(12):
                await post(session, f"{url}/post/task{number}", inbox.url())
            await inbox.wait_for(12)
    assert {id for _, id in inbox.ids} == {f"https://me.example/task{n}" for n in range(12)}
    assert set(inbox.ids.values()) == {1}
