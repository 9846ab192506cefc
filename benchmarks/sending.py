"""Sign and POST, as the bare loop and all peers do it: the same session, headers and signature.

Imported in environments that have aiohttp, cryptography and orjson, but not all of ours.
"""

from __future__ import annotations

import os
import ssl
import time
from functools import lru_cache
from pathlib import Path

import aiohttp
from yarl import URL

from benchmarks.load import key_id
from fedsvc import __version__
from fedsvc.domain.keys import load_private_key
from fedsvc.domain.message import CONTENT_TYPE, Message
from fedsvc.domain.signatures import MessageForm, Target, imf_fixdate


def session(context: ssl.SSLContext | bool = True) -> aiohttp.ClientSession:
    """Without limit, cookies or deadline. Connections are kept for as long as any run takes: with many hosts
    on a slow machine it is long until a host's next turn. Called in the event loop that it belongs to."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=context, keepalive_timeout=3600.0),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": f"fedsvc/{__version__}", "Accept": "*/*", "Accept-Encoding": "identity"},
        auto_decompress=False,
        trust_env=False,
        timeout=aiohttp.ClientTimeout(total=None),
    )


class Sender:
    """What a task of a peer calls. What is the same for all deliveries it makes once, as the bare loop."""

    def __init__(self) -> None:
        self._key = load_private_key(Path(os.environ["BENCH_KEY"]).read_bytes())
        self._session: aiohttp.ClientSession | None = None

    async def deliver(self, url: str, body: str) -> None:
        """Raises RuntimeError unless it is taken."""
        if self._session is None:
            self._session = session()
        raw, form = _prepared(body, self._key.algorithm)
        parsed, target = _target(url)
        date = imf_fixdate(int(time.time()))
        headers = form.headers(target, date, self._key.sign(form.base(target, date)))
        response = await self._session.post(parsed, data=raw, headers=headers, allow_redirects=False)
        if response.status != 202:
            raise RuntimeError(f"{url} answered {response.status}")
        if not response.content.is_eof():
            await response.read()


@lru_cache(maxsize=256)
def _prepared(body: str, algorithm: str) -> tuple[bytes, MessageForm]:
    raw = body.encode()
    return raw, MessageForm.of(Message.digest_of(raw), key_id(algorithm), CONTENT_TYPE, algorithm)


@lru_cache(maxsize=4096)
def _target(url: str) -> tuple[URL, Target]:
    return URL(url, encoded=True), Target.of(url)
