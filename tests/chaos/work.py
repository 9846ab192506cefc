"""What applications ask of the service meanwhile, and what it has said that it took."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from fedsvc_client import AsyncFedsvcClient, Unavailable

from chaos.inboxes import Inboxes

KEY_ID = "https://chaos.example/users/a#main-key"


class Work:
    def __init__(self, target: str, inboxes: Inboxes, chance: random.Random, name: str, rate: float) -> None:
        """`name`: of this run, in request ids; `rate`: deliveries per second."""
        self._target = target
        self._inboxes = inboxes
        self._random = chance
        self._name = name
        self._rate = rate
        #: host and activity id
        self.accepted: set[tuple[str, str]] = set()
        key = ed25519.Ed25519PrivateKey.generate()
        self._pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode()
        self._number = 0

    def _activity(self) -> dict[str, Any]:
        self._number += 1
        id = f"https://chaos.example/activities/{self._number}"
        kind = self._random.choice(["Create", "Update", "Announce", "Follow"])
        return {
            "@context": "https://www.w3.org/ns/activitystreams",
            "id": id, "type": kind, "actor": "https://chaos.example/users/a",
            "object": f"https://chaos.example/objects/{self._number}",
        }  # fmt: skip

    async def produce(self, until: float) -> None:
        """Calls at a steady rate; each is repeated under its request id until it is answered."""
        running: set[asyncio.Task[None]] = set()
        async with AsyncFedsvcClient(self._target, timeout=5.0) as client:
            started = time.monotonic()
            sent = 0
            while time.monotonic() < until:
                due = (time.monotonic() - started) * self._rate
                while sent < due and len(running) < 64:
                    call, size = self._call()
                    sent += size
                    task = asyncio.create_task(self._answered(client, call))
                    running.add(task)
                    task.add_done_callback(running.discard)
                await asyncio.sleep(0.02)
            while running:
                await asyncio.wait(set(running))

    def _call(self) -> tuple[Callable[[AsyncFedsvcClient], Any], int]:
        request_id = f"{self._name}-{self._number}"
        shape = self._random.random()
        if shape < 0.5:
            return self._one(request_id), 1
        if shape < 0.75:
            return self._several(request_id), 5
        return self._many(request_id), 20

    def _targets(self, count: int) -> list[int]:
        return self._random.sample(range(self._inboxes.hosts), count)

    def _one(self, request_id: str) -> Callable[[AsyncFedsvcClient], Any]:
        activity, (target,) = self._activity(), self._targets(1)

        async def call(client: AsyncFedsvcClient) -> None:
            await client.queue_activity(
                activity,
                self._inboxes.url(target),
                private_key=self._pem,
                key_id=KEY_ID,
                request_id=request_id,
            )
            self._took(activity, [target])

        return call

    def _several(self, request_id: str) -> Callable[[AsyncFedsvcClient], Any]:
        items = [(self._activity(), target) for target in self._targets(5)]

        async def call(client: AsyncFedsvcClient) -> None:
            answers = await client.queue_activities(
                [{"activity": a, "destination": self._inboxes.url(t)} for a, t in items],
                private_key=self._pem, key_id=KEY_ID, request_id=request_id,
            )  # fmt: skip
            for answer, (activity, target) in zip(answers, items, strict=True):
                if answer.error is not None:
                    raise RuntimeError(f"refused: {answer.error}")
                self._took(activity, [target])

        return call

    def _many(self, request_id: str) -> Callable[[AsyncFedsvcClient], Any]:
        activity, targets = self._activity(), self._targets(20)

        async def call(client: AsyncFedsvcClient) -> None:
            answer = await client.fan_out(
                activity, [self._inboxes.url(t) for t in targets],
                private_key=self._pem, key_id=KEY_ID, request_id=request_id,
            )  # fmt: skip
            if answer.rejected or answer.accepted + answer.duplicates != len(targets):
                raise RuntimeError(f"not all were accepted: {answer}")
            self._took(activity, targets)

        return call

    def _took(self, activity: dict[str, Any], targets: list[int]) -> None:
        for target in targets:
            self.accepted.add((self._inboxes.host(target), activity["id"]))

    async def _answered(self, client: AsyncFedsvcClient, call: Callable[[AsyncFedsvcClient], Any]) -> None:
        end = time.monotonic() + 120
        while True:
            try:
                await call(client)
                return
            except Unavailable:
                if time.monotonic() > end:
                    raise
                await asyncio.sleep(0.2)
