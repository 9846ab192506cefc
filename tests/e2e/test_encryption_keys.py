"""The key encryption key is changed while server and worker run: nothing is restarted, and nothing fails."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

from fedsvc_client import AsyncFedsvcClient
from servers.inbox import InboxServer
from servers.processes import Fedsvc

from fedsvc.domain.keys import KeyCipher

ACTOR = "https://me.example/u/ada"


def told(dev: Fedsvc, event: str) -> int:
    """How often the server's log has told an event."""
    lines = (line for line in dev.stderr.splitlines() if f'"event": "{event}"' in line)
    return sum('"process": "server"' in line for line in lines)


def wait(dev: Fedsvc, event: str, before: int) -> None:
    """Until it is told again."""
    end = time.monotonic() + 60
    while told(dev, event) == before:
        assert time.monotonic() < end, dev.stderr[-3000:]
        time.sleep(0.05)


async def test_an_encryption_key_is_replaced_under_running_processes(tmp_path: Path, rsa_pem: str) -> None:
    keys = tmp_path / "kek"
    old, new = KeyCipher.generate(), KeyCipher.generate()
    keys.write_text(old)
    keys.chmod(0o600)
    settings = {
        "FEDSVC_ALLOW_HTTP": "true",
        "FEDSVC_ALLOWED_CIDRS": "127.0.0.0/8",
        "FEDSVC_KEY_ENCRYPTION_KEYS_FILE": str(keys),
    }
    listen = ("--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0")
    with Fedsvc(tmp_path, "dev", *listen, settings=settings) as dev:
        target, _ = await asyncio.to_thread(dev.ready)
        async with AsyncFedsvcClient(target) as client, InboxServer() as inbox:

            async def deliver(number: int) -> None:
                """One signed with a key of before, one with a key that is put now."""
                await client.put_key(f"{ACTOR}#{number}", rsa_pem)
                for key in {0, number}:
                    like = {"id": f"{ACTOR}/{number}/{key}", "type": "Like", "actor": ACTOR}
                    sent = json.dumps(like | {"object": "https://o.example/1"}).encode()
                    await client.queue_activity(sent, inbox.url(), key_id=f"{ACTOR}#{key}")
                await inbox.wait_for(2 * number + 1)

            await deliver(0)
            for number, (text, event) in enumerate(
                (
                    (f"{old}\n{new}", "encryption_keys_read"),
                    (f"{new}\n{old}", "keys_encrypted_anew"),
                    (new, "encryption_keys_read"),
                ),
                1,
            ):
                before = told(dev, event)
                keys.write_text(text)
                await asyncio.to_thread(wait, dev, event, before)
                await deliver(number)
        assert "KEY_UNAVAILABLE" not in dev.stderr
        assert "encryption_keys_not_read" not in dev.stderr
