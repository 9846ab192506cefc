"""POSTs by one HTTP client, and what they cost it.

    python -m benchmarks.http_clients CLIENT --port N --hosts N --posts N --ca FILE

Runs with what the client needs: `own`, `frames` and `aiohttp` beside fedsvc, others in the environment of the
peers. CONCURRENCY tasks share the hosts out among them, and keep to their own, so that no connection is made
once each has been to all of them: what they do until then is not counted. Headers are those of a signed
delivery. Each has a signature of its own, as in life (HPACK would shrink one that is always the same to a
byte), but it is made beforehand.

Prints, as JSON, the seconds of CPU that the process took for what counts, and of time, and how many POSTs
were made in all.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib
import itertools
import json
import random
import time
from collections.abc import Iterator
from typing import Final

import uvloop

from benchmarks.http_clients.client import Client, Inbox
from benchmarks.load import CONCURRENCY, activity, address, compact, key_id
from fedsvc.domain.message import CONTENT_TYPE, Message
from fedsvc.domain.signatures import MessageForm, imf_fixdate

#: of RSA-2048
_SIGNATURE_BYTES: Final = 256
#: of one task
_SIGNATURES: Final = 64
#: that each host has from each task before it counts
_TURNS: Final = 4


class Sender:
    """One of CONCURRENCY at a time, to some of the hosts."""

    def __init__(self, client: Client, inboxes: list[Inbox], form: MessageForm, body: bytes) -> None:
        self._client = client
        self._inboxes = itertools.cycle(inboxes)
        self._form = form
        self._body = body
        self._signatures = itertools.cycle([random.randbytes(_SIGNATURE_BYTES) for _ in range(_SIGNATURES)])

    async def send(self, turns: Iterator[int]) -> None:
        """Raises RuntimeError for an answer that is not 202."""
        for _ in turns:
            inbox = next(self._inboxes)
            date = imf_fixdate(int(time.time()))
            headers = self._form.headers(inbox.target, date, next(self._signatures))
            status = await self._client.post(inbox, headers, self._body)
            if status != 202:
                raise RuntimeError(f"{inbox.url} answered {status}")


async def main(arguments: argparse.Namespace) -> None:
    client: Client = importlib.import_module(f"benchmarks.http_clients.{arguments.client}_client").make()
    body = compact(activity(0))
    form = MessageForm.of(Message.digest_of(body), key_id("rsa"), CONTENT_TYPE, "rsa")
    inboxes = [Inbox.of(address(number), arguments.port) for number in range(arguments.hosts)]
    hosts = [inboxes[number % arguments.hosts :: CONCURRENCY] for number in range(CONCURRENCY)]
    senders = [Sender(client, some, form, body) for some in hosts]
    await client.open(arguments.ca)
    uncounted = [_TURNS * len(some) for some in hosts]
    await asyncio.gather(
        *(sender.send(iter(range(count))) for sender, count in zip(senders, uncounted, strict=True))
    )
    gc.collect()
    gc.freeze()
    cpu, wall = time.process_time(), time.perf_counter()
    turns = iter(range(arguments.posts))
    await asyncio.gather(*(sender.send(turns) for sender in senders))
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    await client.close()
    print(json.dumps({"cpu": cpu, "wall": wall, "made": sum(uncounted) + arguments.posts}))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.http_clients")
    parser.add_argument("client")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--hosts", type=int, required=True)
    parser.add_argument("--posts", type=int, required=True)
    parser.add_argument("--ca", required=True)
    return parser.parse_args()


if __name__ == "__main__":
    uvloop.run(main(parsed()))
