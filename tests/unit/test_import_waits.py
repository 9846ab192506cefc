"""What an importer does with rows that a server takes later, and a relay's list of the same reasons."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
from fedsvc_client import BatchItem, ItemError, ResourceExhausted, _wire
from fedsvc_client._proto import delivery_service_pb2 as pb
from fedsvc_client.outbox import _relay

from fedsvc.archive.send_queue import SendQueueRow
from fedsvc.cli import importer
from fedsvc.errors import Overloaded
from fedsvc.server.errors import TOLD

LATER = sorted(reason for kind, _, reason in TOLD if issubclass(kind, Overloaded))
ROW = SendQueueRow(
    7, "https://a.example/inbox", "https://me.example/key", "", '{"id": "https://me.example/1"}',
    datetime(2026, 1, 1, tzinfo=UTC), None, 0, 40,
)  # fmt: skip


class FullOnce:
    """A server that refuses the first call for a reason: its item, or the call as a whole."""

    def __init__(self, reason: str, *, whole: bool) -> None:
        self.reason = reason
        self.whole = whole
        self.calls = 0

    def queue_activities(self, items: list[dict[str, Any]]) -> list[BatchItem]:
        self.calls += 1
        if self.calls == 1 and self.whole:
            raise ResourceExhausted("not now", reason=self.reason)
        if self.calls == 1:
            return [BatchItem(0, None, ItemError(self.reason, "not now", ""))]
        return [BatchItem(0, _wire.queued(pb.QueueActivityResponse()), None)]


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("reason", LATER)
async def test_an_import_waits_for_a_server_that_has_no_room_for_now(
    reason: str, whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importer, "_PAUSE", 0.0)
    client = FullOnce(reason, whole=whole)
    progress = importer.Progress(tmp_path / "state", "here")
    told = importer.Imported(dry_run=False)
    taking = importer.Import(cast(Any, None), progress, told, cast(Any, client), remove=False, patience=60.0)
    await taking._take([importer.Good(ROW, "a.example", "Like")])
    assert (client.calls, progress.failed, progress.through) == (2, {}, 7)


def test_a_relay_waits_for_the_same_reasons() -> None:
    assert sorted(_relay._OVERLOAD) == LATER
