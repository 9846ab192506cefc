"""No file may be opened any more: that is nobody's fault but ours, and idle connections are not why."""

from __future__ import annotations

import asyncio
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from servers.remote import ACCEPTED, accepting, deliver, delivering, serving

from fedsvc.domain.classify import Outcome
from fedsvc.domain.delivery import Reason
from fedsvc.worker.resolver import OutOfFiles, look_up


@contextmanager
def no_files_left() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_no_host_is_blamed_for_it(host: str) -> None:
    async with serving(ACCEPTED) as remote, delivering(allowed_cidrs="127.0.0.0/8,::1") as deliverer:
        url = remote.url.replace("127.0.0.1", host)
        with no_files_left():
            verdict = (await deliver(deliverer, url)).verdict
        assert (verdict.outcome, verdict.reason) == (Outcome.RETRY, Reason.WORKER_ERROR), verdict
        assert not verdict.counts_against_host
        assert (await deliver(deliverer, url)).verdict.status == 202, "it is not remembered as a missing name"


def test_a_name_that_cannot_be_looked_up_is_not_called_unknown() -> None:
    with no_files_left(), pytest.raises(OutOfFiles):
        look_up("localhost")


async def test_idle_connections_leave_files_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsvc.worker.transport.resource.getrlimit", lambda _: (10, 10))

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(ACCEPTED)
        await reader.read()

    addresses = [f"127.0.0.{n}" for n in range(1, 9)]
    async with delivering() as deliverer, accepting(act, *addresses) as port:
        for address in addresses:
            assert (await deliver(deliverer, f"http://{address}:{port}/inbox")).verdict.status == 202
        assert len(deliverer._transport._idle) == 5
