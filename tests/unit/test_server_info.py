"""What Redis tells of itself."""

from __future__ import annotations

from typing import cast

import pytest

from fedsvc.queue.link import Link
from fedsvc.queue.server_info import server_info


class Told:
    def __init__(self, *answers: str) -> None:
        self._answers = answers

    async def everywhere(self, *_: str) -> list[bytes]:
        return [answer.encode() for answer in self._answers]


def of(used: int, limit: int) -> str:
    return f"# Memory\r\nused_memory:{used}\r\nmaxmemory:{limit}\r\n"


@pytest.mark.parametrize("used", range(1_000_000, 1_000_020))
async def test_the_limit_of_memory_is_told_to_the_byte(used: int) -> None:
    assert (await server_info(cast(Link, Told(of(used, 1_000_000_000))))).max_memory == 1_000_000_000


@pytest.mark.parametrize(
    ("masters", "used", "limit"),
    [([(50, 100), (10, 100)], 60, 120), ([(50, 0), (10, 0)], 60, 0), ([(50, 0), (10, 40)], 60, 240)],
)
async def test_a_cluster_is_as_full_as_the_fullest_of_its_masters(
    masters: list[tuple[int, int]], used: int, limit: int
) -> None:
    info = await server_info(cast(Link, Told(*(of(*master) for master in masters))))
    assert (info.used_memory, info.max_memory) == (used, limit)
