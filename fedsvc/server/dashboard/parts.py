"""What all requests to the dashboard share: services, sessions, history, templates, style and script."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from aiohttp import web

from fedsvc import __version__
from fedsvc.config import Settings
from fedsvc.domain.message import Message
from fedsvc.server.dashboard import words
from fedsvc.server.dashboard.calls import Calls
from fedsvc.server.dashboard.history import History
from fedsvc.server.dashboard.sessions import Attempts, Sessions
from fedsvc.server.monitor import Monitor
from fedsvc.server.tokens import TokenBook

if TYPE_CHECKING:
    from jinja2 import Environment

_HERE: Final = Path(__file__).parent
_TYPES: Final = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}

#: what a page says after something was done, by what its address carries: no text of an address is ever shown
DONE: Final = {
    "paused": "Paused.",
    "resumed": "Resumed.",
    "policy": "The limits are set.",
    "cancelled": "Cancelled. What a worker had at that moment may still arrive, but is not tried again.",
    "deleted": "Deleted.",
    "deferred": "It is deleted as soon as no delivery needs it.",
    "created": "Created.",
    "started": "It goes on in the background; this page shows how far it is.",
    "out": "You are signed out.",
}


class Static:
    """Style, script and icon, read once."""

    def __init__(self, directory: Path = _HERE / "static") -> None:
        self._files = {path.name: path.read_bytes() for path in sorted(directory.iterdir())}
        self._marks = {name: hashlib.sha256(data).hexdigest()[:16] for name, data in self._files.items()}

    def address(self, name: str) -> str:
        """Another one whenever the file changes, so that it may be kept for long."""
        return f"/static/{name}?v={self._marks[name]}"

    async def serve(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in self._files:
            raise web.HTTPNotFound
        return web.Response(
            body=self._files[name],
            content_type=_TYPES[Path(name).suffix],
            charset="utf-8",
            headers={"Cache-Control": "public, max-age=31536000, immutable"},
        )


@dataclass(slots=True)
class Parts:
    settings: Settings
    tokens: TokenBook
    calls: Calls
    sessions: Sessions
    history: History
    monitor: Monitor
    attempts: Attempts = field(default_factory=Attempts)
    static: Static = field(default_factory=Static)
    done: Mapping[str, str] = field(default_factory=lambda: DONE)
    version: str = __version__


@cache
def templates() -> Environment:
    """All that comes from outside is escaped, and a name that is missing is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # not needed before the first page

    environment = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters.update(
        number=words.number,
        rate=words.rate,
        ms=words.milliseconds,
        span=words.span,
        bytes=words.bytes_of,
        seconds=words.seconds_of,
        plain=words.plain,
        chosen=words.chosen,
        details=words.details,
        body=words.body,
        exact=words.exact,
        digest=Message.digest_of,
    )
    environment.globals.update(
        word=words.word, shown=words.shown, term=words.term, choices=words.choices, moment=words.moment
    )
    return environment
