"""The bell: it rings where there is new work, and workers tell each other by it that they come and go."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import NamedTuple

from fedsvc.errors import QueueUnavailable
from fedsvc.queue.keys import Keys
from fedsvc.queue.link import Link, is_away


class Rung(NamedTuple):
    """There is new work."""

    partition: int
    urgent: bool


class Announced(NamedTuple):
    """A worker begins, or takes nothing more."""

    worker: str
    arrives: bool


class Bell:
    def __init__(self, link: Link, keys: Keys) -> None:
        self._link = link
        self._channel = keys.bell

    async def announce(self, worker: str, *, arrives: bool) -> None:
        """Tell those who listen that `worker` begins, or takes nothing more."""
        await self._link.call("PUBLISH", self._channel, f"{'+' if arrives else '-'}{worker}")

    async def listen(self) -> AsyncGenerator[Rung | Announced, None]:
        """What is told as it happens, until QueueUnavailable. May miss some: poll too."""
        pubsub = None
        try:
            pubsub = self._link.pubsub()
            await pubsub.subscribe(self._channel)
            while True:
                # Bounded, so that a connection that died silently is found out by the ping in between.
                told = await pubsub.get_message(timeout=5.0)
                if told is None:
                    await pubsub.ping()
                elif told["type"] == "message" and (heard := _heard(told["data"])) is not None:
                    yield heard
        except Exception as error:
            if not is_away(error):
                raise
            raise QueueUnavailable(f"Redis does not answer: {type(error).__name__}") from None
        finally:
            if pubsub is not None:
                await pubsub.aclose()  # type: ignore[no-untyped-call]


def _heard(message: bytes) -> Rung | Announced | None:
    """None for what a newer version may say."""
    if message[:1] in (b"+", b"-"):
        return Announced(message[1:].decode(errors="replace"), message[:1] == b"+")
    number = message.rstrip(b"!")
    return Rung(int(number), message.endswith(b"!")) if number.isdigit() else None
