"""When what archives comes round again, and when SQL is asked whether it is there. Time is virtual."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fedsvc.archive.archive import Archive
from fedsvc.config import Settings
from fedsvc.errors import ArchiveUnavailable, QueueUnavailable
from fedsvc.queue.outcomes import OutcomeLog
from fedsvc.worker import archival_handler
from fedsvc.worker.affinity import Affinity
from fedsvc.worker.archival_handler import ArchivalHandler
from fedsvc.worker.beats import Beats

PAUSE, AWAY = ArchivalHandler.PAUSE, ArchivalHandler.AWAY


class Desk:
    """A handler whose rounds do as they are told, and an SQL that counts how often it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.beats = Beats("archive")
        self.rounds: list[Any] = []
        self.pings = 0
        self.sql_is_away = False
        self.seen: list[tuple[float, dict[str, str], int]] = []
        self.resigned: list[tuple[int, str]] = []
        monkeypatch.setattr(archival_handler, "ArchivedLog", lambda _engine: None)
        self.handler = ArchivalHandler(
            Settings.from_environment({}),
            cast(OutcomeLog, SimpleNamespace(resign=self._resign)),
            cast(Archive, SimpleNamespace(engine=None, ping=self._ping)),
            self.beats,
            Affinity("a", 4),
        )
        self._now = 5000.0
        clock = SimpleNamespace(time=lambda: self._now)
        monkeypatch.setattr(asyncio, "get_running_loop", lambda: clock)
        monkeypatch.setattr(self.handler, "round", self._round)
        monkeypatch.setattr(asyncio, "sleep", self._sleep)

    async def _resign(self, partition: int, name: str) -> bool:
        self.resigned.append((partition, name))
        return True

    async def _ping(self) -> None:
        self.pings += 1
        if self.sql_is_away:
            raise ArchiveUnavailable("SQL is away")

    async def _round(self) -> bool:
        answer = self.rounds.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return bool(answer)

    async def _sleep(self, seconds: float) -> None:
        self.seen.append((seconds, dict(self.beats.problems), self.pings))
        self._now += seconds
        if not self.rounds:
            raise asyncio.CancelledError

    async def run(self, *rounds: Any) -> None:
        self.rounds = list(rounds)
        with pytest.raises(asyncio.CancelledError):
            await self.handler.run()


async def test_it_goes_on_at_once_while_there_is_more_and_waits_while_redis_or_sql_is_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    desk = Desk(monkeypatch)
    await desk.run(True, False, QueueUnavailable("Redis"), ArchiveUnavailable("SQL"), False)
    assert [(pause, problems) for pause, problems, _ in desk.seen] == [
        (0.0, {}),
        (PAUSE, {}),
        (AWAY, {"archive": "Redis"}),
        (AWAY, {"archive": "SQL"}),
        (PAUSE, {}),
    ]


async def test_sql_is_asked_at_first_and_once_in_a_while_when_nothing_is_archived(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    desk = Desk(monkeypatch)
    rounds = int(2 * ArchivalHandler.PING_EVERY / PAUSE) + 1
    await desk.run(True, *[False] * rounds)
    pings = [pings for _, _, pings in desk.seen]
    assert (pings[0], pings[1], pings[-2], pings[-1]) == (0, 1, 2, 3)


async def test_an_sql_that_is_away_while_there_is_nothing_to_archive_is_told_and_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    desk = Desk(monkeypatch)
    desk.sql_is_away = True
    await desk.run(False, False)
    assert desk.seen == [(AWAY, {"archive": "SQL is away"}, 1), (AWAY, {"archive": "SQL is away"}, 2)]
    desk.sql_is_away = False
    await desk.run(False)
    assert desk.seen[-1] == (PAUSE, {}, 3)


async def test_one_that_leaves_gives_up_every_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(monkeypatch)
    monkeypatch.undo()
    await desk.handler.leave()
    assert sorted(desk.resigned) == [(partition, "a") for partition in range(4)]
