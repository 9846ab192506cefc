"""Activities in the shape in which PieFed sends them."""

from __future__ import annotations

from typing import Any, Final

ORIGIN: Final = "https://piefed.demo.example"
COMMUNITY: Final = f"{ORIGIN}/c/federation"
AUTHOR: Final = f"{ORIGIN}/u/ada"
PUBLIC: Final = "https://www.w3.org/ns/activitystreams#Public"
CONTEXT: Final = [
    "https://www.w3.org/ns/activitystreams",
    "https://w3id.org/security/v1",
    {
        "lemmy": "https://join-lemmy.org/ns#",
        "pt": "https://joinpeertube.org/ns#",
        "sc": "http://schema.org/",
        "commentsEnabled": "pt:commentsEnabled",
        "sensitive": "as:sensitive",
        "stickied": "lemmy:stickied",
        "language": "sc:inLanguage",
    },
]


def activities() -> list[dict[str, Any]]:
    """One each of Create, Like, Announce, Delete and Follow."""
    page = {
        "type": "Page",
        "id": f"{ORIGIN}/post/1",
        "attributedTo": AUTHOR,
        "to": [COMMUNITY, PUBLIC],
        "cc": [],
        "name": "Deliveries that arrive",
        "content": "<p>" + "Every instance gets this once. " * 20 + "</p>",
        "mediaType": "text/html",
        "source": {"content": "Every instance gets this once.", "mediaType": "text/markdown"},
        "commentsEnabled": True,
        "sensitive": False,
        "stickied": False,
        "published": "2026-11-23T11:00:00+00:00",
        "audience": COMMUNITY,
    }
    create = _activity("Create", "create/1", AUTHOR, page)
    like = _activity("Like", "like/1", AUTHOR, "https://other.demo.example/post/7")
    inner = {
        key: value
        for key, value in _activity("Create", "create/2", AUTHOR, page).items()
        if key != "@context"
    }
    announce = _activity("Announce", "announce/1", COMMUNITY, inner) | {"cc": [f"{COMMUNITY}/followers"]}
    delete = _activity("Delete", "delete/1", AUTHOR, f"{ORIGIN}/post/0") | {
        "summary": "removed by its author",
        "removeData": False,
    }
    follow = _activity("Follow", "follow/1", AUTHOR, "https://other.demo.example/c/cats")
    return [create, like, announce, delete, follow]


def _activity(kind: str, path: str, actor: str, object: Any) -> dict[str, Any]:
    return {
        "@context": CONTEXT,
        "id": f"{ORIGIN}/activities/{path}",
        "type": kind,
        "actor": actor,
        "to": [PUBLIC],
        "cc": [COMMUNITY],
        "object": object,
    }
