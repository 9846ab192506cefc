"""Several servers and workers on one Redis Cluster, every one of them replaced under load."""

from __future__ import annotations

from pathlib import Path

import pytest
from rolling.drill import drill


@pytest.mark.timeout(300)
async def test_every_server_and_worker_is_replaced_under_load_and_nothing_is_lost_nor_seen_by_callers(
    tmp_path: Path,
) -> None:
    async with drill(tmp_path, size=3, hosts=40, rate=50.0, seed=20_261_124) as fleet:
        async with fleet.load():
            await fleet.restart_all(kill=False)
            await fleet.move_one(kill=False)
        checks = await fleet.judge()
        assert all(checks.values()), f"{checks}\n{fleet.summary()}\n{fleet.counts.errors[:5]}"
        assert fleet.twice == 0, "who is told to stop sends nothing twice"
        async with fleet.load():
            await fleet.restart_all(kill=True)
        checks = await fleet.judge()
        assert all(checks.values()), f"{checks}\n{fleet.summary()}\n{fleet.counts.errors[:5]}"
        assert fleet.counts.restarts == 14
        print(fleet.summary())
