"""The example of docs/handlers.md, installed as anybody would, in a real server and worker."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from fedsvc_client import AsyncFedsvcClient, DeliveryState, InvalidRequest, Priority
from servers.inbox import InboxServer
from servers.processes import Fedsvc, ended

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs/examples/fedsvc-example-handler"
KEY_ID = "https://me.example/u/ada#main-key"
LISTEN = ("--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0")


def install(package: Path, target: Path) -> None:
    """As pip does it, from what is there already."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    command += ["--no-build-isolation", "--disable-pip-version-check", "--target", str(target), str(package)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("installed")
    install(EXAMPLE, target)
    return target


#: its retry policy can be had until a file is there
FRAGILE = """
from pathlib import Path
from fedsvc.handlers import DEFAULT_POLICY, Handler

class Fragile(Handler):
    types = ("Fragile",)

    @property
    def retry(self):
        if Path(__file__).with_name("broken").exists():
            raise LookupError("policy")
        return DEFAULT_POLICY
"""


def write(directory: Path, name: str, entry_point: str, code: str) -> None:
    """A package as if it had been installed."""
    metadata = directory / f"{name}-1.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(f"[fedsvc.handlers]\n{entry_point}\n")
    (directory / f"{name}.py").write_text(code)


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("fragile")
    write(directory, "fragile", "fragile = fragile:Fragile", FRAGILE)
    return directory


@pytest.fixture(scope="module")
def dev(installed: Path, fragile: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fedsvc]:
    settings = {
        "PYTHONPATH": f"{installed}{os.pathsep}{fragile}",
        "FEDSVC_ALLOW_HTTP": "true",
        "FEDSVC_ALLOWED_CIDRS": "127.0.0.0/8",
        "FEDSVC_RETRY_SCALE": "0.001",
    }
    directory = tmp_path_factory.mktemp("dev")
    with Fedsvc(directory, "dev", "--data-dir", "data", *LISTEN, settings=settings) as fedsvc:
        fedsvc.ready()
        yield fedsvc


def activity(kind: str, number: int, **members: Any) -> dict[str, Any]:
    return {
        "id": f"https://me.example/{kind}/{number}",
        "type": kind,
        "actor": "https://me.example/u/ada",
        "object": "https://other.example/post/1",
        **members,
    }


async def test_a_type_of_a_plugin_is_checked_and_has_its_priority(dev: Fedsvc, rsa_pem: str) -> None:
    async with InboxServer() as inbox, AsyncFedsvcClient(dev.ready()[0]) as client:
        key: dict[str, Any] = {"private_key": rsa_pem, "key_id": KEY_ID}
        with pytest.raises(InvalidRequest, match=r"activity\.content: is no emoji"):
            await client.queue_activity(activity("EmojiReact", 1), inbox.url(), **key)
        react = activity("EmojiReact", 1, content="🦀")
        queued = await client.queue_activity(react, inbox.url(), **key)
        delivery = await ended(client, queued.delivery_id)
        assert (delivery.state, delivery.priority) == (DeliveryState.DELIVERED, Priority.URGENT)
        assert delivery.ordering_key == react["id"]


async def test_of_a_plugin_s_family_only_the_last_is_sent(dev: Fedsvc, rsa_pem: str) -> None:
    async with InboxServer() as inbox, AsyncFedsvcClient(dev.ready()[0]) as client:
        later = datetime.now(UTC) + timedelta(hours=1)
        first, second = [
            await client.queue_activity(
                activity("EmojiReact", number, content="🦀"), inbox.url(), private_key=rsa_pem, key_id=KEY_ID,
                not_before=later,
            )
            for number in (2, 3)
        ]  # fmt: skip
        assert (await client.get_delivery(first.delivery_id)).state is DeliveryState.SUPERSEDED
        assert (await client.get_delivery(second.delivery_id)).state is DeliveryState.SCHEDULED


async def test_a_plugin_s_retry_policy_holds_and_it_hears_of_the_end(dev: Fedsvc, rsa_pem: str) -> None:
    async def failing(host: str, body: bytes) -> web.Response:
        return web.Response(status=500)

    async with InboxServer(failing, ("127.82.0.1",)) as inbox, AsyncFedsvcClient(dev.ready()[0]) as client:
        join = activity("Join", 1)
        queued = await client.queue_activity(
            join, inbox.url("127.82.0.1"), private_key=rsa_pem, key_id=KEY_ID
        )
        delivery = await ended(client, queued.delivery_id)
        assert (delivery.state, delivery.reason, delivery.attempts) == (
            DeliveryState.DEAD,
            "RETRIES_EXHAUSTED",
            3,
        )
    told = f"127.82.0.1 has not heard of {join['id']}"
    async with asyncio.timeout(30):
        while told not in dev.stderr:
            await asyncio.sleep(0.02)


async def test_a_handler_that_breaks_in_a_worker_makes_dead_letters_and_blocks_nothing(
    dev: Fedsvc, fragile: Path, rsa_pem: str
) -> None:
    async def takes_likes(host: str, body: bytes) -> web.Response:
        return web.Response(status=202 if b"Like" in body else 500)

    (fragile / "broken").touch()
    async with (
        InboxServer(takes_likes, ("127.82.0.2",)) as inbox,
        AsyncFedsvcClient(dev.ready()[0]) as client,
    ):
        url = inbox.url("127.82.0.2")
        broken, like = [
            await client.queue_activity(activity(kind, 1), url, private_key=rsa_pem, key_id=KEY_ID)
            for kind in ("Fragile", "Like")
        ]
        delivery = await ended(client, broken.delivery_id)
        assert (delivery.state, delivery.reason) == (DeliveryState.DEAD, "HANDLER_ERROR")
        assert delivery.http_status == 500
        assert delivery.response_snippet == "the handler of Fragile, fragile.Fragile, failed; see the log"
        assert (await ended(client, like.delivery_id)).state is DeliveryState.DELIVERED
    assert "LookupError" in dev.stderr


@pytest.mark.parametrize("command", ["dev", "server", "worker", "worker-process"])
def test_a_plugin_that_cannot_be_used_is_one_line_at_start(
    tmp_path: Path, encryption_key: str, command: str
) -> None:
    code = "from fedsvc.handlers import Handler\nclass Votes(Handler):\n    types = ('Like',)\n"
    write(tmp_path, "broken", "votes = broken:Votes", code)
    kept = {k: v for k, v in os.environ.items() if not k.startswith("FEDSVC_")}
    settings = {
        "PYTHONPATH": str(tmp_path),
        "FEDSVC_KEY_ENCRYPTION_KEYS": encryption_key,
        "FEDSVC_LISTEN": "127.0.0.1:0",
        "FEDSVC_HTTP_LISTEN": "127.0.0.1:0",
        "FEDSVC_LOG_LEVEL": "error",
    }
    done = subprocess.run(
        [sys.executable, "-m", "fedsvc", command],
        capture_output=True,
        text=True,
        timeout=60,
        env=kept | settings,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "fedsvc: entry point fedsvc.handlers:votes = broken:Votes of broken: "
        "handles Like, which is built in: say `replaces = True` to replace it\n"
    )
