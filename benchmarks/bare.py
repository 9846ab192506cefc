"""The limit: sign and POST in a loop, with nothing around it.

    python -m benchmarks.bare PORT HOSTS DELIVERIES CONCURRENCY KEY.pem BODY.json

The same signing code, HTTP client and event loop as the worker's. Prints JSON: wall and CPU seconds.
"""

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import uvloop
from yarl import URL

from benchmarks.sink import address
from fedsvc.domain.keys import load_private_key
from fedsvc.domain.message import CONTENT_TYPE, Message
from fedsvc.domain.signatures import MessageForm, signed_headers


async def main(port: int, hosts: int, deliveries: int, concurrency: int, pem: str, body: bytes) -> None:
    key = load_private_key(pem)
    form = MessageForm.of(
        Message.digest_of(body), "https://me.example/u/a#main-key", CONTENT_TYPE, key.algorithm
    )
    urls = [f"http://{address(n)}:{port}/inbox" for n in range(hosts)]
    parsed = {url: URL(url, encoded=True) for url in urls}
    numbers: Iterator[int] = iter(range(deliveries))

    async def work(session: aiohttp.ClientSession) -> None:
        for number in numbers:
            url = urls[number % hosts]
            headers = signed_headers(form, url, int(time.time()), key.sign)
            async with session.post(parsed[url], data=body, headers=headers) as response:
                assert response.status == 202
                await response.read()

    connector = aiohttp.TCPConnector(limit=concurrency)
    async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as session:
        wall, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(work(session) for _ in range(concurrency)))
        took = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    print(json.dumps(took))


if __name__ == "__main__":
    counts = [int(text) for text in sys.argv[1:5]]
    files = Path(sys.argv[5]).read_text(), Path(sys.argv[6]).read_bytes()
    uvloop.run(main(counts[0], counts[1], counts[2], counts[3], *files))
