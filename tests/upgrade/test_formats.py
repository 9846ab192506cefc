"""What is stored packed is read by the versions on both sides."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from fedsvc.domain.delivery import Attempt, DeliveryState, Reason
from fedsvc.domain.message import Message
from fedsvc.queue import hosts, outcome
from fedsvc.queue.record import unpack
from tools.release import formats
from upgrade.stage import RELEASES, released, unpacked

#: run by the version before: reads what this one has packed, and tells what it has understood
READER = """
import json, sys
from fedsvc.domain.delivery import DeliveryId, DeliveryState
from fedsvc.domain.message import Message
from fedsvc.queue import hosts, outcome
from fedsvc.queue.record import unpack

given = json.load(sys.stdin)
id = DeliveryId(*given["id"])
for packed in given["records"]:
    record = unpack(bytes.fromhex(packed), id)
    print(record.inbox, record.message, [(a.time_ms, a.status) for a in record.history])
for packed in given["outcomes"]:
    ended = outcome.unpack(packed.encode(), id, DeliveryState.DEAD, 9000)
    print(ended.inbox, ended.status, ended.snippet.encode())
print(Message.unpack(b"x", given["message"].encode()).key_id)
host = hosts.state_of("h.example", bytes.fromhex(given["host"]), b"", bytes.fromhex(given["host policy"]), 0)
print(host.failures, host.policy.rate)
"""


@pytest.mark.parametrize("version", released())
def test_what_every_release_has_packed_is_read_as_it_was_meant(version: str) -> None:
    kept = formats.written(RELEASES / version)
    assert unpack(bytes.fromhex(kept["record"]), formats.ID) == formats.RECORD
    assert Message.unpack(formats.MESSAGE.body, kept["message"].encode()) == formats.MESSAGE
    read = outcome.unpack(kept["outcome"].encode(), formats.ID, DeliveryState.DEAD, formats.OUTCOME.outcome)
    assert read == formats.OUTCOME
    state = hosts.state_of(
        "h", bytes.fromhex(kept["host"]), b"", bytes.fromhex(kept["host policy"]), now_ms=0
    )
    read_of_it = (state.failures, state.latency_ms, state.policy.rate)
    assert read_of_it == (formats.HOST.failures, formats.HOST.latency, formats.POLICY[1])


@pytest.mark.parametrize("version", released())
def test_no_number_that_is_stored_changes_its_meaning(version: str) -> None:
    kept, now = formats.written(RELEASES / version), formats.golden()
    for numbers in ("states", "priorities", "reasons"):
        assert kept[numbers].items() <= now[numbers].items()


def test_the_version_before_reads_what_this_one_packs(tmp_path: Path) -> None:
    old = unpacked(released()[-1], tmp_path)
    now = formats.golden()
    asked = {
        "id": formats.ID,
        "records": [now["record"], *(record_with(reason) for reason in range(1, max(Reason) + 2))],
        "outcomes": [now["outcome"], with_one_part_more(now["outcome"])],
        **{name: now[name] for name in ("message", "host", "host policy")},
    }
    done = subprocess.run(
        [sys.executable, "-c", READER],
        input=json.dumps(asked),
        env={"PYTHONPATH": str(old)},
        cwd=tmp_path,
        text=True,
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    attempts = [(a.time_ms, a.status) for a in formats.RECORD.history]
    assert lines[0] == f"{formats.RECORD.inbox} {formats.RECORD.message} {attempts}"
    assert lines[-4:] == [
        *[f"{formats.OUTCOME.inbox} 503 {formats.OUTCOME.snippet.encode()!r}"] * 2,
        formats.MESSAGE.key_id,
        f"{formats.HOST.failures} {formats.POLICY[1]}",
    ]


def record_with(reason: int) -> str:
    """A record whose last attempt ended for a reason that this version does not have, if it has none."""
    packed = formats.RECORD.pack(formats.ID.accepted_ms)
    return (packed[:-1] + bytes([reason])).hex()


def with_one_part_more(packed: str) -> str:
    parts: list[Any] = [*orjson.loads(packed), "of the next version"]
    return orjson.dumps(parts).decode()


def test_a_reason_of_the_next_version_is_another() -> None:
    packed = bytes.fromhex(record_with(max(Reason) + 1))
    read = unpack(packed, formats.ID)
    assert read.history[-1] == Attempt(  # type: ignore[union-attr]
        formats.RECORD.history[-1].time_ms, 0xFFFF, 0, Reason.OTHER
    )
    with pytest.raises(ValueError, match="0 is not a valid Reason"):
        Reason(0)
