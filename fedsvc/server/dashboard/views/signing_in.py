"""Signing in with a token, and out."""

from __future__ import annotations

import structlog
from aiohttp import web

from fedsvc.server.dashboard.visit import Visit, seen, to

log = structlog.get_logger(__name__)


async def page(visit: Visit) -> web.Response:
    if visit.caller is not None:
        to(_next(visit.query("next")))
    return visit.render("sign_in.html", title="Sign in", problem="", next=visit.query("next"))


async def enter(visit: Visit) -> web.Response:
    tokens = visit.parts.tokens
    digest = tokens.digest(visit.field("token"))
    if tokens.identify(digest) is None:
        return _refuse(visit)
    visit.session = visit.parts.sessions.begin(digest)
    return seen(_next(visit.field("next")))


def _refuse(visit: Visit) -> web.Response:
    """A wrong token. Right ones are let in whatever came before: a token of 256 bits cannot be guessed, and
    behind a proxy all have one address, so that anybody could lock out everybody."""
    address = visit.request.remote or ""
    attempts = visit.parts.attempts
    if attempts.blocked(address):
        log.warning("sign_in_blocked", address=address)
        return _again(visit, 429, "Too many wrong tokens from your address; wait a minute.")
    attempts.fail(address)
    log.warning("sign_in_refused", address=address)
    return _again(visit, 403, "This token is not known.")


async def leave(visit: Visit) -> web.Response:
    visit.parts.sessions.end(visit.session)
    visit.session = visit.parts.sessions.begin()
    return seen("/sign-in?done=out")


def _again(visit: Visit, status: int, problem: str) -> web.Response:
    return visit.render(
        "sign_in.html", status=status, title="Sign in", problem=problem, next=visit.field("next")
    )


def _next(path: str) -> str:
    """Where somebody was going to, on this server."""
    local = path.startswith("/") and not path.startswith("//") and "\\" not in path and path.isprintable()
    return path if local and not path.startswith("/sign-") else "/"
