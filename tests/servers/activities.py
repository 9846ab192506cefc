"""Activities to send, each another one."""

from __future__ import annotations

from typing import Any


def activity(number: int) -> dict[str, Any]:
    return {
        "id": f"https://me.example/activities/{number}",
        "type": "Announce",
        "actor": "https://me.example/u/ada",
        "object": f"https://me.example/post/{number}",
    }
