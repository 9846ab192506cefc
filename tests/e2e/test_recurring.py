"""A schedule as an operator makes one: what it sends arrives, also after a restart."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from fedsvc_client import AsyncFedsvcClient, FedsvcClient, Schedule
from servers.inbox import InboxServer
from servers.processes import Fedsvc

KEY_ID = "https://me.example/u/ada#main-key"
SETTINGS = {"FEDSVC_ALLOW_HTTP": "true", "FEDSVC_ALLOWED_CIDRS": "127.0.0.0/8"}
TEMPLATE = {
    "id": "https://me.example/hourly/{run_id}",
    "type": "Announce",
    "actor": "https://me.example/u/ada",
    "object": "https://other.example/post/1",
    "published": "{time}",
}


def told(target: str, *arguments: str) -> Any:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("FEDSVC")}
    done = subprocess.run(
        [sys.executable, "-m", "fedsvc", *arguments, "--json", "--target", target],
        env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


async def test_what_is_scheduled_arrives_once_a_run_also_after_a_restart(
    tmp_path: Path, rsa_pem: str
) -> None:
    listen = ("--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0")
    arguments = (tmp_path, "dev", "--data-dir", "data", *listen)
    (tmp_path / "template.json").write_text(json.dumps(TEMPLATE))
    (tmp_path / "key.pem").write_text(rsa_pem)
    async with InboxServer() as inbox:
        with Fedsvc(*arguments, settings=SETTINGS) as fedsvc:
            (target, _) = await asyncio.to_thread(fedsvc.ready)
            key = ("keys", "put", KEY_ID, "--key-file", str(tmp_path / "key.pem"))
            await asyncio.to_thread(told, target, *key)
            made = await asyncio.to_thread(
                told, target, "schedules", "create", "hourly", "--interval", "1", "--key-id", KEY_ID,
                "--activity", str(tmp_path / "template.json"), "--inbox", inbox.url(),
            )  # fmt: skip
            assert (made["interval"], made["missed_runs"]) == (1.0, "ONCE")
            await inbox.wait_for(2)
        before = len(inbox.received)
        with Fedsvc(*arguments, settings=SETTINGS) as fedsvc:
            (target, _) = await asyncio.to_thread(fedsvc.ready)
            await inbox.wait_for(before + 2)
            async with AsyncFedsvcClient(target) as client:
                (shown,) = (await client.list_schedules()).schedules
                assert (shown.last_error, shown.paused) == ("", False)
                assert shown.last_run_time is not None
                paused = await client.pause_schedule("hourly")
                assert paused.next_run_time is None
    ids = [json.loads(body)["id"] for _, body in inbox.received]
    times = [json.loads(body)["published"] for _, body in inbox.received]
    assert set(inbox.received.values()) == {1}, "each run is sent once"
    assert len(set(ids)) == len(ids) == len(set(times))
    assert all("{" not in id and id.startswith("https://me.example/hourly/hourly-") for id in ids)


def test_maintenance_is_scheduled_and_steered(tmp_path: Path) -> None:
    listen = ("--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0")
    with Fedsvc(tmp_path, "dev", "--data-dir", "data", *listen, settings=SETTINGS) as fedsvc:
        (target, _) = fedsvc.ready()
        for task, given in (
            ("archive_purge", ()),
            ("host_probe", ("limit=5",)),
            ("dead_letter_replay", ("reason=UNAVAILABLE", "max_age_seconds=86400", "limit=10")),
            ("cleanup", ("aggressive=true",)),
        ):
            more = [part for argument in given for part in ("--argument", argument)]
            name = task.replace("_", "-")
            told(target, "schedules", "create", name, "--interval", "1", "--task", task, *more)
        with FedsvcClient(target) as client:
            for _ in range(600):
                found = client.list_schedules().schedules
                operations = client.list_operations().operations
                if all(s.last_run_time for s in found) and operations and operations[-1].done:
                    break
                time.sleep(0.05)
            assert {s.schedule_id: s.last_error for s in found} == {
                "archive-purge": "", "host-probe": "", "dead-letter-replay": "", "cleanup": "",
            }  # fmt: skip
            assert operations[-1].principal == "schedule dead-letter-replay"
            assert (operations[-1].kind, operations[-1].limit) == ("replay", 10)
            assert operations[-1].filter is not None
            assert operations[-1].filter.reason == "UNAVAILABLE"
            client.pause_schedule("cleanup")
            assert told(target, "schedules", "show", "cleanup")["paused"] is True
            assert told(target, "schedules", "resume", "cleanup")["next_run_time"]
            daily = Schedule("cleanup", cron="0 4 * * *", time_zone="Europe/Berlin", task="cleanup")
            assert client.update_schedule(daily).cron == "0 4 * * *"
        told(target, "schedules", "delete", "cleanup")
        listed = told(target, "schedules", "list")["schedules"]
        assert [s["schedule_id"] for s in listed] == ["archive-purge", "dead-letter-replay", "host-probe"]
