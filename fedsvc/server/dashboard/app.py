"""The dashboard's routes, and what holds for every request to it: headers, hosts, sessions, forms, errors."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import structlog
from aiohttp import web
from google.rpc import code_pb2

from fedsvc.config import Settings
from fedsvc.queue.keystore import key_cipher
from fedsvc.server.caller import ANYBODY, Caller
from fedsvc.server.dashboard.calls import CallFailed, Calls
from fedsvc.server.dashboard.history import History
from fedsvc.server.dashboard.parts import Parts
from fedsvc.server.dashboard.sessions import PURPOSE, Session, Sessions
from fedsvc.server.dashboard.views import (
    activities,
    audit,
    dead_letters,
    hosts,
    keys,
    overview,
    schedules,
    signing_in,
)
from fedsvc.server.dashboard.visit import Form, View, Visit, to
from fedsvc.server.monitor import Monitor
from fedsvc.server.tokens import TokenBook

log = structlog.get_logger(__name__)

COOKIE: Final = "fedsvc_session"
#: bytes of a form
_LONGEST_FORM: Final = 1_100_000
#: seconds for a form to come
FORM_PATIENCE_S: Final = 20.0
_POLICY: Final = "; ".join(
    (
        "default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self'", "connect-src 'self'",
        "form-action 'self'", "frame-ancestors 'none'", "base-uri 'none'",
    )
)  # fmt: skip
HEADERS: Final = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # not no-referrer: with that, browsers send forms without saying where they come from
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
_STATUS: Final = {
    code_pb2.INVALID_ARGUMENT: 400,
    code_pb2.UNAUTHENTICATED: 401,
    code_pb2.PERMISSION_DENIED: 403,
    code_pb2.NOT_FOUND: 404,
    code_pb2.ALREADY_EXISTS: 409,
    code_pb2.FAILED_PRECONDITION: 409,
    code_pb2.RESOURCE_EXHAUSTED: 429,
    code_pb2.UNIMPLEMENTED: 501,
    code_pb2.UNAVAILABLE: 503,
}
_TITLES: Final = {
    400: "That cannot be done like this", 401: "Sign in first", 403: "You have no right to that",
    404: "There is nothing here", 405: "That cannot be done like this", 408: "That took too long",
    409: "That cannot be done now", 413: "That is too much", 421: "This server has another name",
    429: "Too much at once", 501: "Not in this version", 503: "Redis or the database does not answer",
}  # fmt: skip

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def pages(
    settings: Settings, tokens: TokenBook, calls: Calls, history: History, monitor: Monitor
) -> list[web.AbstractRouteDef]:
    """None where it is switched off, or strangers could come in. Raises ConfigurationError."""
    if not settings.dashboard:
        return []
    if tokens.open and not settings.http_listen.local and not settings.insecure:
        log.warning("dashboard_off", reason="others reach FEDSVC_HTTP_LISTEN, and there are no FEDSVC_TOKENS")
        return []
    sessions = Sessions(key_cipher(settings, PURPOSE), settings.dashboard_session)
    return routes(Parts(settings, tokens, calls, sessions, history, monitor))


def routes(parts: Parts) -> list[web.AbstractRouteDef]:
    """Of all pages, below `/`."""
    found: list[web.AbstractRouteDef] = [web.get("/static/{name}", _guarded_file(parts))]
    for path, view in (
        ("/sign-in", signing_in.page),
        *overview.PAGES, *hosts.PAGES, *activities.PAGES, *dead_letters.PAGES, *schedules.PAGES, *keys.PAGES,
        *audit.PAGES,
    ):  # fmt: skip
        found.append(web.get(path, _page(parts, view)))
    for path, view in (
        ("/sign-in", signing_in.enter),
        ("/sign-out", signing_in.leave),
        *hosts.ACTIONS, *activities.ACTIONS, *dead_letters.ACTIONS, *schedules.ACTIONS, *keys.ACTIONS,
    ):  # fmt: skip
        found.append(web.post(path, _page(parts, view)))
    found.append(web.get("/{rest:.*}", _page(parts, _nothing)))
    return found


async def _nothing(_: Visit) -> web.StreamResponse:
    raise web.HTTPNotFound


def _guarded_file(parts: Parts) -> Handler:
    async def serve(request: web.Request) -> web.StreamResponse:
        if not known_host(request, parts):
            raise web.HTTPMisdirectedRequest
        response = await parts.static.serve(request)
        response.headers.update(HEADERS)
        return response

    return serve


def _page(parts: Parts, view: View) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        if not known_host(request, parts):
            # Another site may have had its name point here, to read along with its own script.
            return web.Response(
                status=421, text="this name is not in FEDSVC_DASHBOARD_HOSTS\n", headers=HEADERS
            )
        session, caller = _who(request, parts)
        visit = Visit(request, parts, session, caller)
        try:
            if request.method == "POST":
                visit.form = await _form(request)
                _check_origin(request)
                if not parts.sessions.is_form_of(visit.session, visit.field("form")):
                    raise web.HTTPForbidden
            if caller is None and view not in (signing_in.page, signing_in.enter):
                wanted = request.rel_url.raw_path_qs if request.method == "GET" else ""
                to(visit.address("/sign-in", next=wanted))
            response = await view(visit)
        except web.HTTPRedirection as elsewhere:
            response = web.Response(
                status=elsewhere.status, headers={"Location": elsewhere.headers["Location"]}
            )
        except CallFailed as failed:
            response = _failure(visit, _STATUS.get(failed.code, 500), failed.message, failed.problems)
        except web.HTTPException as failed:
            response = _failure(visit, failed.status, "", {})
        except ConnectionError:
            raise  # the browser has gone
        except Exception:
            log.exception("dashboard_failed", path=request.path)
            response = _failure(visit, 500, "This is a defect; the server's log has it.", {})
        response.headers.update(HEADERS)
        response.headers.setdefault("Cache-Control", "no-store")
        _remember(visit, response)
        return response

    return handle


def _who(request: web.Request, parts: Parts) -> tuple[Session, Caller | None]:
    session = parts.sessions.open(request.cookies.get(COOKIE, ""))
    if parts.tokens.open:
        return session or parts.sessions.begin(), ANYBODY
    if session is None or not session.digest:
        return session or parts.sessions.begin(), None
    return session, parts.tokens.identify(session.digest)


def _remember(visit: Visit, response: web.StreamResponse) -> None:
    value = visit.parts.sessions.seal(visit.session)
    response.set_cookie(
        COOKIE,
        value,
        max_age=visit.parts.settings.dashboard_session,
        path="/",
        httponly=True,
        samesite="Strict",
        secure=_secure(visit.request),
    )


def _secure(request: web.Request) -> bool:
    return request.secure or request.headers.get("X-Forwarded-Proto", "").split(",")[0].strip() == "https"


def known_host(request: web.Request, parts: Parts) -> bool:
    """Whether the browser means us: what a page of others had resolve to us, it may read if we answer."""
    try:
        name = (urlsplit(f"//{request.headers.get('Host', '')}").hostname or "").rstrip(".").lower()
    except ValueError:
        return False
    if name == "localhost" or name in parts.settings.dashboard_hosts:
        return True
    try:
        ip_address(name)
    except ValueError:
        # With tokens nothing is told to whoever has none, and a cookie belongs to the name it was set under.
        return bool(name) and not parts.tokens.open and not parts.settings.dashboard_hosts
    return True


def _check_origin(request: web.Request) -> None:
    """Raises HTTPForbidden unless a page of ours has sent the form."""
    if request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
        raise web.HTTPForbidden
    origin = request.headers.get("Origin")
    if origin is None:
        return
    host = request.headers.get("Host", "")
    if origin not in (f"http://{host}", f"https://{host}"):
        raise web.HTTPForbidden


async def _form(request: web.Request) -> Form:
    if request.content_type != "application/x-www-form-urlencoded":
        raise web.HTTPBadRequest
    try:
        async with asyncio.timeout(FORM_PATIENCE_S):
            raw = await request.content.read(_LONGEST_FORM + 1)
            while len(raw) <= _LONGEST_FORM and (more := await request.content.read(_LONGEST_FORM)):
                raw += more
    except web.RequestPayloadError:
        raise web.HTTPBadRequest from None
    except TimeoutError:
        raise web.HTTPRequestTimeout from None
    if len(raw) > _LONGEST_FORM:
        raise web.HTTPRequestEntityTooLarge(_LONGEST_FORM, len(raw))
    try:
        return parse_qs(raw.decode(), keep_blank_values=True, max_num_fields=2000)
    except ValueError:
        raise web.HTTPBadRequest from None


def _failure(visit: Visit, status: int, message: str, problems: Any) -> web.Response:
    title = _TITLES.get(status, "Something went wrong")
    return visit.render("failed.html", status=status, title=title, message=message, problems=dict(problems))
