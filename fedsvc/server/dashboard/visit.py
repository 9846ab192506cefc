"""One request of a browser: who it is, what it may do, and how it is answered."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, NoReturn
from urllib.parse import urlencode

from aiohttp import web
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import code_pb2

from fedsvc.server.caller import Caller
from fedsvc.server.dashboard.calls import CallFailed
from fedsvc.server.dashboard.parts import Parts, templates
from fedsvc.server.dashboard.sessions import Session

Form = dict[str, list[str]]
#: seconds, less than the longest duration of the contract
_LONGEST_S: Final = 1e11


@dataclass(slots=True)
class Visit:
    request: web.Request
    parts: Parts
    session: Session
    #: None before sign-in, where there are tokens
    caller: Caller | None
    #: of a POST
    form: Form = field(default_factory=dict)

    def may(self, method: str) -> bool:
        return self.caller is not None and self.parts.calls.may(self.caller, method)

    def need(self, method: str) -> None:
        """For a page that calls nothing yet. Raises HTTPForbidden."""
        if not self.may(method):
            raise web.HTTPForbidden

    async def call(self, method: str, request: Any) -> Any:
        """Raises CallFailed."""
        if self.caller is None:
            raise CallFailed(code_pb2.UNAUTHENTICATED, "nobody is signed in", {})
        return await self.parts.calls.call(self.caller, method, request)

    def query(self, name: str) -> str:
        return self.request.query.get(name, "").strip()

    def field(self, name: str) -> str:
        """Of the form that was sent."""
        values = self.form.get(name)
        return values[0].strip() if values else ""

    def render(self, template: str, *, status: int = 200, **values: Any) -> web.Response:
        text = (
            templates()
            .get_template(template)
            .render(
                visit=self,
                path=self.request.path,
                done=self.parts.done.get(self.query("done"), ""),
                version=self.parts.version,
                static=self.parts.static.address,
                **values,
            )
        )
        return web.Response(text=text, status=status, content_type="text/html")

    def form_value(self) -> str:
        return self.parts.sessions.form_value(self.session)

    def address(self, path: str | None = None, **changed: str) -> str:
        """Of this page (or of `path`), with these parts of the query changed; empty ones are left out."""
        query = dict(self.request.query) if path is None else {}
        query.pop("done", None)
        query |= changed
        encoded = urlencode({name: value for name, value in query.items() if value})
        return f"{path or self.request.rel_url.raw_path}{'?' if encoded else ''}{encoded}"


View = Callable[[Visit], Awaitable[web.StreamResponse]]


def to(address: str) -> NoReturn:
    """Go there, with GET."""
    raise web.HTTPSeeOther(address)


def seen(address: str) -> web.Response:
    """Something was done; the browser goes there to see it."""
    return web.Response(status=303, headers={"Location": address})


def stamp(text: str, name: str) -> Timestamp | None:
    """Of a field of type datetime-local, in UTC. Raises CallFailed."""
    if not text:
        return None
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise invalid(name, "is not a time such as 2026-11-24T08:30") from None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return Timestamp(seconds=int(when.timestamp()))


def whole(text: str, name: str) -> int:
    """A number of 0 or more, 0 if there is none. Raises CallFailed."""
    if not text:
        return 0
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise invalid(name, "is not a whole number")
    return int(text)


def decimal(text: str, name: str) -> float:
    """As `whole`, with decimals."""
    try:
        return float(text or 0)
    except ValueError:
        raise invalid(name, "is not a number") from None


def duration(seconds: float, name: str) -> Duration:
    """To the millisecond. Raises CallFailed for what no duration can be."""
    if not abs(seconds) < _LONGEST_S:
        raise invalid(name, "is out of bounds")
    found = Duration()
    found.FromMilliseconds(round(seconds * 1000))
    return found


def invalid(name: str, problem: str) -> CallFailed:
    return CallFailed(code_pb2.INVALID_ARGUMENT, f"{name} {problem}", {name: problem})
