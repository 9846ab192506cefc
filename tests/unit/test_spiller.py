"""When a spiller comes round again. Neither Redis nor SQL is asked."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from fedsvc.archive.spill_store import SpillStore
from fedsvc.config import Settings
from fedsvc.errors import ArchiveUnavailable, QueueUnavailable
from fedsvc.queue.spill import Spill
from fedsvc.worker.affinity import Affinity
from fedsvc.worker.beats import Beats
from fedsvc.worker.memory import MemoryWatch
from fedsvc.worker.spiller import Spiller


async def test_it_goes_on_at_once_while_there_is_more_and_waits_while_redis_or_sql_is_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    beats = Beats("spill")
    spiller = Spiller(
        cast(Spill, None), cast(SpillStore, None), MemoryWatch(Settings.from_environment({})), beats,
        Affinity("a", 4),
    )  # fmt: skip
    rounds: list[Any] = [
        True,
        False,
        QueueUnavailable("Redis is away"),
        ArchiveUnavailable("SQL is away"),
        ArchiveUnavailable("SQL is away"),
        True,
        ArchiveUnavailable("SQL is away again"),
    ]
    seen: list[tuple[float, dict[str, str]]] = []

    async def come_round() -> bool:
        answer = rounds.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return bool(answer)

    async def sleep(seconds: float) -> None:
        seen.append((seconds, dict(beats.problems)))
        if not rounds:
            raise asyncio.CancelledError

    monkeypatch.setattr(spiller, "round", come_round)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    with capture_logs() as logs, pytest.raises(asyncio.CancelledError):
        await spiller.run()
    assert seen == [
        (0.0, {}),
        (Spiller.PAUSE, {}),
        (Spiller.AWAY, {"spill": "Redis is away"}),
        (Spiller.AWAY, {}),
        (Spiller.AWAY, {}),
        (0.0, {}),
        (Spiller.AWAY, {}),
    ]
    away = [line["error"] for line in logs if line["event"] == "spill_away"]
    assert away == ["SQL is away", "SQL is away again"], "each time told once"
