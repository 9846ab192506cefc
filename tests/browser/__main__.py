"""Pictures of the dashboard over a site that is at work, for the docs.

    cd tests && python -m browser [SECONDS]

Runs `fedsvc dev` with hosts on loopback, some of which fail, sends for a while (default 100 seconds), and
writes docs/images. Needs Chromium.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from fedsvc_client import AsyncFedsvcClient, Schedule
from playwright.async_api import Browser
from servers.inbox import InboxServer, accepted
from servers.processes import Fedsvc

from browser.chromium import chromium, opened

IMAGES = Path(__file__).parents[2] / "docs" / "images"
SETTINGS = {"FEDSVC_ALLOW_HTTP": "true", "FEDSVC_ALLOWED_CIDRS": "127.0.0.0/8", "FEDSVC_RETRY_SCALE": "0.05"}
HOSTS = tuple(f"127.81.{n // 200}.{n % 200 + 1}" for n in range(60))
KEY_ID = "https://me.example/c/news#main-key"
KINDS = ("Announce", "Create", "Like", "Update", "Follow")


async def answer(host: str, body: bytes) -> web.Response:
    """As the fediverse answers: most take it, some are slow, down, or have no such inbox."""
    number = HOSTS.index(host)
    await asyncio.sleep(random.expovariate(1 / (0.02 + 0.004 * number)))
    if number in (7, 23):
        return web.Response(status=503, text="maintenance until tomorrow")
    if number == 41 and random.random() < 0.3:
        return web.Response(status=404, text="there is no such inbox")
    return await accepted(host, body)


def activity(number: int) -> dict[str, Any]:
    return {
        "@context": "https://www.w3.org/ns/activitystreams",
        "id": f"https://me.example/activities/{number}",
        "type": KINDS[number % len(KINDS)],
        "actor": "https://me.example/c/news",
        "object": {"id": f"https://me.example/post/{number}", "type": "Page", "name": "What is new"},
    }


async def work(client: AsyncFedsvcClient, inbox: InboxServer, seconds: float) -> None:
    end = asyncio.get_running_loop().time() + seconds
    for number in itertools.count():
        if asyncio.get_running_loop().time() > end:
            return
        count = random.choice((3, 10, 20, 60)) if number % 40 else 60
        inboxes = [inbox.url(host, f"/u/{number}/inbox") for host in random.sample(HOSTS, count)]
        await client.fan_out(activity(number), inboxes, key_id=KEY_ID)
        await asyncio.sleep(random.uniform(0.05, 0.4))


async def pictures(browser: Browser, base: str, host: str, letter: str) -> None:
    for name, path, dark, width, height in (
        ("overview", "/", False, 1200, 1000),
        ("overview-dark", "/", True, 1200, 1000),
        ("hosts", "/hosts", False, 1200, 640),
        ("host", f"/hosts/{host}", False, 1200, 900),
        ("activity", "/activities?id=https://me.example/activities/40", False, 1200, 700),
        ("dead-letters", "/dead", False, 1200, 640),
        ("dead-letter", f"/dead/{letter}", True, 1200, 900),
        ("schedules", "/schedules", False, 1200, 420),
        ("phone", "/", False, 390, 844),
    ):
        async with opened(browser, base, width=width, height=height, dark=dark) as watched:
            await watched.page.goto(path)
            await watched.page.screenshot(path=IMAGES / f"{name}.png")


async def main(seconds: float) -> None:
    random.seed(1)
    key = rsa.generate_private_key(65537, 2048)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    listen = ("--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0")
    with tempfile.TemporaryDirectory() as directory:
        arguments = (Path(directory), "dev", "--data-dir", "data", *listen)
        with Fedsvc(*arguments, settings=SETTINGS) as fedsvc:
            target, http = await asyncio.to_thread(fedsvc.ready)
            async with (
                InboxServer(answer, HOSTS) as inbox,
                AsyncFedsvcClient(target) as client,
                chromium() as browser,
            ):
                await client.put_key(KEY_ID, pem)
                replay = {"reason": "UNAVAILABLE", "max_age_seconds": 86_400}
                for schedule in (
                    Schedule("nightly-replay", cron="0 4 * * *", time_zone="Europe/Berlin",
                             task="dead_letter_replay", task_arguments=replay),
                    Schedule("probe", cron="*/15 * * * *", task="host_probe"),
                ):  # fmt: skip
                    await client.create_schedule(schedule)
                await client.pause_host(HOSTS[3], reason="they asked for a quiet night", duration=36_000)
                await work(client, inbox, seconds)
                letters = (await client.list_dead_letters()).dead_letters
                await pictures(browser, f"http://{http}", HOSTS[41], letters[0].delivery_id)


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    asyncio.run(main(float(sys.argv[1]) if len(sys.argv) > 1 else 100.0))
