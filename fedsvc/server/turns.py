"""Items of a batch that concern one another are accepted in their order, all others at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Hashable, Sequence
from typing import NamedTuple

from fedsvc.queue.producer import Place
from fedsvc.server.intake import Submission
from fedsvc.v1.delivery_service_pb2 import QueueActivityResult

Accept = Callable[[], Awaitable[QueueActivityResult]]


class Turn(NamedTuple):
    #: those before it that have one of these too come first
    about: Collection[Hashable]
    accept: Accept


def about(submission: Submission, place: Place) -> Collection[Hashable]:
    """What order, superseding and duplicates go by, at the host that it goes to."""
    message, relation = submission.message, submission.terms.relation
    names = {message.activity_id, relation.ordering_key, relation.family, relation.undoes} - {""}
    return {(message.origin, place.host, name) for name in names}


async def in_turn(turns: Sequence[Turn]) -> list[QueueActivityResult]:
    """What each `accept` gives. One that raises fails all: what would come after it is not accepted."""
    last: dict[Hashable, asyncio.Task[QueueActivityResult]] = {}
    tasks = []
    for turn in turns:
        before = {last[key] for key in turn.about if key in last}
        task = asyncio.create_task(_after(before, turn.accept))
        last.update(dict.fromkeys(turn.about, task))
        tasks.append(task)
    return await asyncio.gather(*tasks)


async def _after(
    before: Collection[asyncio.Task[QueueActivityResult]], accept: Accept
) -> QueueActivityResult:
    if before:
        done, _ = await asyncio.wait(before)
        for task in done:
            task.result()
    return await accept()
