"""docs/interop.md: who verifies what of ours, as it was just now."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from interop.inboxes import Kind, visit_profile, visit_verifier
from interop.profiles import PROFILES
from interop.verifiers import (
    PROOFS,
    VERIFIERS,
    Inboxes,
    Scheme,
    Verifier,
    captured_for,
    verifier_inboxes,
)
from interop.wire import send

ROOT: Final = Path(__file__).resolve().parents[2]
PAGE: Final = ROOT / "docs/interop.md"

_INTRODUCTION: Final = """\
# Interoperability

<!-- Generated: change tests/interop, then cd tests && ../.venv/bin/python -m interop --write -->

Who verifies what fedsvc sends. Every request below left the worker's own deliverer by TLS, on a socket, and
was judged by code that is not ours, or that shares nothing with the code that signs. `tests/interop` runs all
of it, with what must be refused: a changed body, path, time or signature, another key, and for each rule of a
profile requests that break it. One test fails where this page is not what a run gives. Where npm's registry
cannot be reached it is skipped, and with `CI` set it fails.

```sh
.venv/bin/python -m pytest tests/interop
cd tests && ../.venv/bin/python -m interop --write   # this page anew
```
"""
_SCHEMES: Final = """\
## Schemes

Each verifier stands as an inbox, and is sent one request in each scheme; those that it does not know it
refuses. The proof was looked at by itself: the key of that request's own signature is nobody's.
"""
_VERIFIERS: Final = """\
## Verifiers

Which knock is taken at a new host, and in which form. What is not draft-cavage is remembered with the host,
and is the first and only knock of the next delivery.
"""
_VERIFIER_NOTES: Final = """\
Fedify and apsig verify draft-cavage by the path without its query. apsig's RFC 9421 is not here: it does not
know `@target-uri`, and we sign nothing without it. Digital Bazaar's library verifies proofs as of Verifiable
Credentials, and takes none whose document's context has an object in it.
"""
_PROFILES: Final = """\
## Servers

Profiles are the rules that a server's source has for the signature of a delivery, written as code of their
own (`tests/interop/profiles.py`). They are no running servers: what else a server may refuse is not in them.
"""
_PROFILE_NOTES: Final = """\
In production Lemmy has no ids with a port, and so no such inboxes. Of an inbox with a query, PieFed, older
Pleroma and Fedify verify draft-cavage by the path alone, where the draft, Mastodon, Lemmy and Misskey have
the query.
"""
_RULES: Final = """\
## Rules

What the profiles check, and what each of their tests breaks.
"""


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


async def _takes(inboxes: Inboxes, verifier: Verifier, scheme: Scheme) -> str:
    host = verifier.host_for(scheme)
    answer = await send(await captured_for(verifier, scheme), host, inboxes.ports[host])
    return {202: "accepted", 401: "not known"}.get(answer.status, str(answer.status))


async def make_page(inboxes: Inboxes) -> str:
    """The whole page; all verifiers must be serving."""
    packages = [
        (v.name, f"`{v.package}` {inboxes.versions[v.language, v.package]}, {v.language}") for v in VERIFIERS
    ]
    schemes = [
        (verifier.name, *[await _takes(inboxes, verifier, scheme) for scheme in Scheme])
        for verifier in VERIFIERS
    ]
    kinds = [kind for kind in Kind if kind is not Kind.ADDRESS]
    verifiers = [
        (v.name, *[str(await visit_verifier(v, kind)) for kind in kinds])
        for v in VERIFIERS
        if v.knows != PROOFS
    ]
    profiles = []
    for profile in PROFILES:
        visits = [await visit_profile(profile, kind) for kind in Kind]
        profiles.append((profile.name, *("has none" if visit is None else str(visit) for visit in visits)))
    parts = (
        _INTRODUCTION,
        _SCHEMES,
        _table(("verifier", *(scheme.title for scheme in Scheme)), schemes),
        _table(("verifier", "package"), packages),
        _VERIFIERS,
        _table(("an inbox with", *(kind.title for kind in kinds)), verifiers),
        _VERIFIER_NOTES,
        _PROFILES,
        _table(("an inbox with", *(kind.title for kind in Kind)), profiles),
        _PROFILE_NOTES,
        _RULES,
        _table(("server", "wants"), [(p.name, "; ".join(p.rules)) for p in PROFILES]),
    )
    return "\n".join(parts)


async def current_page() -> str:
    """Starts and stops the verifiers. Raises NoRegistry."""
    async with verifier_inboxes() as inboxes:
        return await make_page(inboxes)
