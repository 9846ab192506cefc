"""The limit: sign and POST in a loop, with nothing around it.

    python -m benchmarks.bare --ports [PORT] --deliveries N --key KEY.pem --body FILE [--unsigned] [--ca FILE]

Whatever is the same for all deliveries is made once: the key, the message's part of the signing base, of each
inbox its URL and its part. What is left is what any sender has to do: date, base, signature, headers, and a
POST over kept-alive connections, with the headers that the worker sends, by aiohttp on uvloop as peers do. It
has no deadline, no retry and no record of anything, and signs on its loop.

Prints nothing; waits for the end of its standard input when it is done, so that it can still be asked what it
has cost.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import aiohttp
import uvloop
from yarl import URL

from benchmarks.load import CONCURRENCY, HOSTS, address, key_id
from benchmarks.sending import session
from benchmarks.unsigned.signature import NULL_SIGNATURE
from fedsvc.domain.keys import load_private_key
from fedsvc.domain.message import CONTENT_TYPE, Message
from fedsvc.domain.signatures import MessageForm, Target, imf_fixdate


async def deliver(
    client: aiohttp.ClientSession,
    inboxes: list[tuple[URL, Target]],
    deliveries: Iterator[int],
    form: MessageForm,
    sign: Callable[[bytes], bytes],
    body: bytes,
) -> None:
    """One of CONCURRENCY at a time, until there is nothing left."""
    hosts = len(inboxes)
    for number in deliveries:
        url, target = inboxes[number % hosts]
        date = imf_fixdate(int(time.time()))
        headers = form.headers(target, date, sign(form.base(target, date)))
        response = await client.post(url, data=body, headers=headers, allow_redirects=False)
        if response.status != 202:
            raise RuntimeError(f"{url} answered {response.status}")
        if not response.content.is_eof():
            await response.read()


async def main(arguments: argparse.Namespace) -> None:
    body: bytes = arguments.body.read_bytes()
    key = load_private_key(arguments.key.read_bytes())
    sign = (lambda _: NULL_SIGNATURE) if arguments.unsigned else key.sign
    form = MessageForm.of(Message.digest_of(body), key_id(key.algorithm), CONTENT_TYPE, key.algorithm)
    texts = inbox_urls(arguments.ports, arguments.hosts, tls=bool(arguments.ca))
    inboxes = [(URL(text, encoded=True), Target.of(text)) for text in texts]
    context = ssl.create_default_context(cafile=arguments.ca) if arguments.ca else True
    numbers: Iterator[int] = iter(range(arguments.deliveries))
    async with session(context) as ours:
        gc.collect()
        gc.freeze()
        await asyncio.gather(*(deliver(ours, inboxes, numbers, form, sign, body) for _ in range(CONCURRENCY)))
    await asyncio.to_thread(sys.stdin.read)


def inbox_urls(ports: list[int], hosts: int, *, tls: bool = False) -> list[str]:
    """Host n listens on the port of its certificate: the hosts are shared out evenly among the ports."""
    scheme, each = "https" if tls else "http", -(-hosts // len(ports))
    return [f"{scheme}://{address(n)}:{ports[n // each]}/inbox" for n in range(hosts)]


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bare")
    parser.add_argument("--ports", type=json.loads, required=True)
    parser.add_argument("--hosts", type=int, default=HOSTS)
    parser.add_argument("--deliveries", type=int, required=True)
    parser.add_argument("--key", type=Path, required=True)
    parser.add_argument("--body", type=Path, required=True)
    parser.add_argument("--ca", default="")
    parser.add_argument("--unsigned", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    uvloop.run(main(parsed()))
