"""A server answers with an attack: the verdict is as it must be, in time, and the worker is well after it."""

from __future__ import annotations

import pytest

from fedsvc.domain.classify import Outcome
from fedsvc.domain.delivery import Reason
from hostile.attacks import ATTACKS
from hostile.remote import (
    ACCEPTED,
    deliver,
    delivering,
    serving,
)

DEADLINE_S = 0.6
#: what a busy machine may take beyond a deadline
SLACK_MS = 2000


@pytest.mark.parametrize("name", ATTACKS)
async def test_an_attack_ends_in_its_verdict_and_in_time(name: str) -> None:
    attack = ATTACKS[name]
    async with (
        serving(attack.item) as remote,
        serving(ACCEPTED) as good,
        delivering(delivery_timeout=DEADLINE_S) as deliverer,
    ):
        result = await deliver(deliverer, remote.url)
        verdict = result.verdict
        assert (verdict.reason, verdict.status) == (attack.reason, attack.status), verdict
        assert verdict.outcome is (Outcome.DELIVERED if verdict.reason is Reason.OK else Outcome.RETRY)
        assert verdict.counts_against_host is (verdict.reason is not Reason.OK)
        assert result.latency_ms < DEADLINE_S * 1000 + SLACK_MS
        assert len(verdict.snippet.encode()) <= 1024
        assert verdict.snippet.isprintable()
        assert verdict.detail.isprintable()
        assert (await deliver(deliverer, good.url)).verdict.status == 202
