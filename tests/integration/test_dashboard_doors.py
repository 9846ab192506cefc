"""Who may see the dashboard, and what is done about requests that nobody meant."""

from __future__ import annotations

import io
import re
from pathlib import Path

import aiohttp
import pytest
from servers.browser import PAGES, TOKENS, Browser, browsing
from servers.hosts import MadeHost, put
from servers.queue import Queue, dead_letters
from yarl import URL

from fedsvc import watched_files
from fedsvc.domain.delivery import DeliveryState, Reason
from fedsvc.server.dashboard.app import COOKIE


@pytest.mark.parametrize("path", PAGES)
async def test_every_page_is_there_and_guarded_by_its_headers(browser: Browser, path: str) -> None:
    response = await browser.get(path)
    text = await response.text()
    assert response.status == 200, text
    policy = response.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Referrer-Policy"] == "same-origin"
    assert response.headers["Cache-Control"] == "no-store"
    cookie = response.headers["Set-Cookie"]
    assert all(part in cookie for part in ("HttpOnly", "SameSite=Strict", "Path=/"))
    assert "Secure" not in cookie
    assert not re.search(r"<script(?![^>]*src=)|\son\w+=|\sstyle=|javascript:", text)
    assert re.findall(r'(?:src|href|action)="(?:https?:)?//[^"]*"', text) == []
    assert text.count("<h1>") == 1


async def test_behind_tls_the_cookie_is_for_tls_only(browser: Browser) -> None:
    response = await browser.get("/", **{"X-Forwarded-Proto": "https"})
    assert "Secure" in response.headers["Set-Cookie"]


async def test_what_is_not_there_is_not_found(browser: Browser) -> None:
    for path in ("/nope", "/static/nope.css", "/static/..%2fapp.py", "/dead/1-1", "/hosts/nowhere.example"):
        assert (await browser.get(path)).status == 404, path
    for path in (
        "/deliveries/x",
        "/dead/x",
        "/operations/x",
        "/hosts/a%20b",
        "/dead?http_status=42",
        "/dead?since=x",
    ):
        response = await browser.get(path)
        assert response.status == 400, path
    assert (await browser.get("/hosts?page=x")).status == 400


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "a b", "[::1"])
async def test_a_name_that_others_have_point_here_is_not_answered(browser: Browser, host: str) -> None:
    for path in ("/", "/static/script.js"):
        response = await browser.get(path, Host=host)
        assert response.status in (400, 421), path
        assert "Pending" not in await response.text()


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8080", "127.0.0.1", "[::1]:80"])
async def test_addresses_and_localhost_are_us(browser: Browser, host: str) -> None:
    assert (await browser.get("/", Host=host)).status == 200


@pytest.mark.parametrize(
    ("headers", "fields"),
    [
        ({}, {"form": ""}),
        ({}, {"form": "x" * 600}),
        ({"Origin": "https://evil.example"}, {}),
        ({"Origin": "null"}, {}),
        ({"Sec-Fetch-Site": "cross-site"}, {}),
        ({"Sec-Fetch-Site": "same-site"}, {}),
    ],
)
async def test_a_form_that_no_page_of_ours_has_sent_does_nothing(
    browser: Browser, queue: Queue, headers: dict[str, str], fields: dict[str, str]
) -> None:
    await put(queue, [MadeHost("h0.example")])
    response = await browser.send("/hosts/h0.example/pause", "/hosts/h0.example", headers=headers, **fields)
    assert response.status == 403
    assert "paused" not in re.findall(r'pill host-([a-z-]+)"', await browser.text("/hosts/h0.example"))


async def test_a_form_belongs_to_its_session(browser: Browser, queue: Queue) -> None:
    await put(queue, [MadeHost("h0.example")])
    async with browsing(browser.server) as other:
        value = await other.form_value("/hosts/h0.example")
    response = await browser.send("/hosts/h0.example/pause", "/hosts/h0.example", form=value)
    assert response.status == 403


async def test_forms_of_other_kinds_and_sizes_are_refused(browser: Browser) -> None:
    url = browser.url("/sign-out")
    assert (await browser.http.post(url, json={}, allow_redirects=False)).status == 400
    large, kind = io.BytesIO(b"form=" + b"x" * 1_200_000), "application/x-www-form-urlencoded"
    answer = await browser.http.post(url, data=large, headers={"Content-Type": kind}, allow_redirects=False)
    assert answer.status == 413
    assert (await browser.http.put(url, data={})).status == 405


async def test_without_a_token_nothing_is_shown(guarded: Browser) -> None:
    for path in PAGES:
        response = await guarded.get(path)
        assert response.status == 303
        assert response.headers["Location"].startswith("/sign-in")
    page = await guarded.text("/sign-in?next=/dead")
    assert "Overview" not in page
    for path in ("/hosts/a.example/pause", "/dead/do", "/keys/delete"):
        assert (await guarded.send(path)).headers["Location"].startswith("/sign-in")
    for path in ("/healthz", "/metrics"):
        assert (await guarded.get(path)).status == 200


async def test_in_and_out_with_a_token(guarded: Browser) -> None:
    response = await guarded.send("/sign-in", token="fedsvc_wrong")
    assert (response.status, "not known" in await response.text()) == (403, True)
    await guarded.sign_in("all")
    assert "Sign out" in await guarded.text("/")
    (cookie,) = guarded.http.cookie_jar.filter_cookies(URL(guarded.url("/"))).values()
    assert TOKENS["all"] not in cookie.value
    response = await guarded.send("/sign-out", "/")
    assert response.headers["Location"] == "/sign-in?done=out"
    assert (await guarded.get("/")).status == 303
    stolen = {"Cookie": f"{COOKIE}={cookie.value}"}
    async with aiohttp.ClientSession() as other:
        again = await other.get(guarded.url("/"), headers=stolen, allow_redirects=False)
        assert again.status == 303, "what was signed out stays out"


@pytest.mark.parametrize(
    "path", ["//evil.example", "https://evil.example", "/\\evil.example", "/sign-out", "x"]
)
async def test_signing_in_leads_nowhere_else(guarded: Browser, path: str) -> None:
    response = await guarded.send("/sign-in", token=TOKENS["all"], next=path)
    assert (response.status, response.headers["Location"]) == (303, "/")


async def test_who_guesses_tokens_is_made_to_wait_and_locks_nobody_out(guarded: Browser) -> None:
    for _ in range(10):
        assert (await guarded.send("/sign-in", token="fedsvc_wrong")).status == 403
    assert (await guarded.send("/sign-in", token="fedsvc_wrong")).status == 429
    await guarded.sign_in("all")
    await guarded.send("/sign-out", "/")
    response = await guarded.send("/sign-in", token="fedsvc_wrong")
    assert (response.status, "wait a minute" in await response.text()) == (429, True)


async def test_a_session_ends_with_its_token(
    guarded: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watched_files, "LOOK_EVERY", 0.0)
    await guarded.sign_in("operate")
    assert (await guarded.get("/hosts")).status == 200
    tokens = tmp_path / "tokens"
    kept = [line for line in tokens.read_text().splitlines() if not line.startswith("operate:")]
    tokens.write_text("\n".join(kept))
    assert (await guarded.get("/hosts")).status == 303


@pytest.mark.parametrize(
    ("who", "open_pages"),
    [
        ("deliver", {"/", "/activities"}),
        ("operate", set(PAGES) - {"/keys"}),
        ("keys", {"/keys"}),
        ("all", set(PAGES)),
        ("one", set(PAGES) - {"/operations", "/audit", "/schedules/new"}),
    ],
)
async def test_scopes_open_pages(guarded: Browser, who: str, open_pages: set[str]) -> None:
    await guarded.sign_in(who)
    found = {path for path in PAGES if (await guarded.get(path)).status == 200}
    assert found == open_pages
    some = sorted(open_pages)[0]
    links = set(re.findall(r'<a href="(/[a-z]*)"', await guarded.text(some)))
    assert links & set(PAGES) <= open_pages | {"/"}, "nothing is offered that is refused"


async def test_who_may_see_keys_only_comes_to_them_by_signing_in(guarded: Browser) -> None:
    await guarded.sign_in("keys")
    assert (await guarded.get("/")).headers["Location"] == "/keys"
    assert '<a href="/">Keys</a>' in await (await guarded.get("/hosts")).text()


async def test_an_instance_sees_its_own_dead_letters(guarded: Browser, queue: Queue) -> None:
    await dead_letters(queue, 2)
    theirs = await queue.enqueue("theirs", origin="other.example")
    (admitted,) = await queue.admit_everywhere()
    await queue.settle(admitted, DeliveryState.DEAD, Reason.GONE)
    await guarded.sign_in("one")
    page = await guarded.text("/dead")
    assert str(theirs.id) not in page
    assert page.count('name="ids"') == 2
    assert "Replay" not in page, "that concerns all instances"
    assert (await guarded.get(f"/dead/{theirs.id}")).status == 404
