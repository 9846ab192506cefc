"""An application, or a relay, that is killed with SIGKILL at a point of one's choice. Run as a process:

    python -m servers.outbox_victim DATABASE TABLE POINT

Points of the application, which writes one row: before-commit, after-commit. Of a relay, in its second call:
before-call, after-call, before-delete (the delete is done and not committed).
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import sqlalchemy as sa
from fedsvc_client import Configuration
from fedsvc_client.outbox import Outbox, Relay

KEY_ID = "https://me.example/u/{}#main-key"


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def activity(table: str, number: int | str) -> dict[str, str]:
    id = f"https://me.example/{table}/{number}"
    return {"id": id, "type": "Like", "actor": "https://me.example/u/ada", "object": f"{id}/object"}


def application(engine: sa.Engine, outbox: Outbox, point: str) -> None:
    with engine.begin() as connection:
        name = activity(outbox.table.name, point)
        outbox.queue_activity(connection, name, os.environ["INBOX"], key_id=KEY_ID.format(0))
        if point == "before-commit":
            die()
    die()


def relay(engine: sa.Engine, outbox: Outbox, point: str) -> None:
    client: Any = Configuration.read().connect()
    called, calls = client.queue_activities, []

    def call(items: Any) -> Any:
        calls.append(items)
        if len(calls) == 2 and point == "before-call":
            die()
        told = called(items)
        if len(calls) == 2 and point == "after-call":
            die()
        return told

    def commit(connection: Any) -> None:
        if len(calls) == 2 and point == "before-delete":
            die()

    client.queue_activities = call
    sa.event.listen(engine, "commit", commit)
    Relay(engine, client, outbox, lease=1.5, batch=3).run(until_empty=True)


def main() -> None:
    database, table, point = sys.argv[1:]
    engine, outbox = sa.create_engine(database), Outbox(name=table)
    victim = application if point.endswith("-commit") else relay
    victim(engine, outbox, point)


if __name__ == "__main__":
    main()
