"""The JSON-LD context that PieFed gives activities that bring none."""

from __future__ import annotations

import os
from typing import Any

from fedsvc_client._configuration import lookup

#: prefix -> its namespace, and the terms that are under it
_VOCABULARIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "lemmy": (
        "https://join-lemmy.org/ns#",
        ("distinguished", "matrixUserId", "postingRestrictedToMods", "removeData", "stickied"),
    ),
    "litepub": ("http://litepub.social/ns#", ("ChatMessage",)),
    "pt": ("https://joinpeertube.org/ns#", ("commentsEnabled",)),
    "sc": ("http://schema.org/", ("identifier",)),
}
#: what does not follow from the above
_TERMS: dict[str, Any] = {
    "expires": "as:endTime",
    "language": "sc:inLanguage",
    "moderators": {"@id": "lemmy:moderators", "@type": "@id"},
    "sensitive": "as:sensitive",
}


def default_context() -> list[Any]:
    """ActivityStreams and security, with the vocabularies of Lemmy, LitePub and PeerTube where
    FULL_AP_CONTEXT is on, in Flask's configuration or else the environment, as in PieFed."""
    context: list[Any] = ["https://www.w3.org/ns/activitystreams", "https://w3id.org/security/v1"]
    if _full():
        terms: dict[str, Any] = {prefix: namespace for prefix, (namespace, _) in _VOCABULARIES.items()}
        for prefix, (_, names) in _VOCABULARIES.items():
            terms.update({name: f"{prefix}:{name}" for name in names})
        context.append({**terms, **_TERMS})
    return context


def _full() -> bool:
    said = lookup(os.environ)("FULL_AP_CONTEXT")
    return said.lower() not in ("", "0", "false", "no", "off", "none")
