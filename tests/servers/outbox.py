"""An application's outbox, and what tests do with it most."""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa
from fedsvc_client.outbox import Outbox

from servers.scripted import Scripted

ADA, BOB = "https://me.example/u/ada#main-key", "https://me.example/u/bob#main-key"


def activity(name: Any) -> dict[str, str]:
    return {
        "id": f"https://me.example/{name}",
        "type": "Like",
        "actor": "https://me.example/u/ada",
        "object": "o",
    }


def inbox(number: int) -> str:
    return f"https://h{number}.example/inbox"


def write(engine: sa.Engine, outbox: Outbox, name: Any, host: int = 0, key_id: str = ADA, **more: Any) -> str:
    with engine.begin() as connection:
        return outbox.queue_activity(connection, activity(name), inbox(host), key_id=key_id, **more)


def change(engine: sa.Engine, outbox: Outbox, **values: Any) -> None:
    """Of all rows: how tests move the clock."""
    with engine.begin() as connection:
        connection.execute(outbox.table.update().values(**values))


def rows(engine: sa.Engine, outbox: Outbox) -> list[Any]:
    with engine.begin() as connection:
        return list(connection.execute(sa.select(outbox.table).order_by(outbox.table.c.id)))


def arrived(script: Scripted) -> list[str]:
    """Names of activities in the order in which they came, again and again."""
    found = []
    for call in script.calls:
        for item in getattr(call, "requests", None) or [call]:
            if item.DESCRIPTOR.name != "ListDeliveriesRequest":
                found.append(json.loads(item.activity)["id"].rsplit("/", 1)[1])
    return found
