"""The dashboard over HTTP: what its pages tell, and what is done on them."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import html
import re
from typing import Any

import pytest
from servers.browser import Browser, browsing, chosen
from servers.front import front
from servers.hosts import MadeHost, put
from servers.queue import Queue, dead_letters

from fedsvc.domain.delivery import DeliveryState, Reason
from fedsvc.errors import QueueUnavailable
from fedsvc.queue.stats import StatsReader
from fedsvc.v1 import key_service_pb2 as keys_pb
from fedsvc.v1 import operations_service_pb2 as pb

KEY_ID = "https://me.example/u/ada#main-key"
EVIL = '"><script>alert(1)</script><img src=x onerror=alert(2)>'


async def test_a_host_is_found_paused_limited_and_resumed(browser: Browser, queue: Queue) -> None:
    await put(queue, [MadeHost(f"h{n}.example") for n in range(3)])
    async with asyncio.timeout(10):  # the server's figures may have read the hosts just before, for a second
        while "h1.example" not in (page := await browser.text("/hosts?q=h1&sort=name")):
            continue
    assert ("h1.example" in page, "h2.example" in page) == (True, False)
    at = "/hosts/h1.example"
    assert "8 at once, 1,000 a second, 2,000 after a rest (the defaults)" in await browser.text(at)
    response = await browser.send(f"{at}/pause", at, reason="they asked", minutes="5")
    assert response.headers["Location"] == f"{at}?done=paused"
    page = await browser.text(f"{at}?done=paused")
    assert all(text in page for text in ("Paused.", "they asked", "Resume"))
    assert (await browser.send(f"{at}/resume", at)).status == 303
    assert (await browser.send(f"{at}/policy", at, max_in_flight="3", rate_per_second="0.5")).status == 303
    assert "3 at once, 0.5 a second" in await browser.text(at)
    response = await browser.send(f"{at}/policy", at, max_in_flight="many")
    assert (response.status, "is not a whole number" in await response.text()) == (400, True)
    response = await browser.send(f"{at}/policy", at, rate_per_second="nan")
    assert response.status == 400
    for minutes in ("inf", "nan", "1e300", "-5"):
        assert (await browser.send(f"{at}/pause", at, minutes=minutes)).status == 400
    assert "host.pause" in await browser.text("/audit?action=host.pause")


async def test_the_overview_tells_retries_by_three_things_and_links_what_can_be_done(
    browser: Browser, queue: Queue
) -> None:
    for n in range(2):
        await queue.enqueue(f"r{n}", inbox=n)
    for wait_ms, admitted in enumerate(await queue.admit_everywhere()):
        reason = (Reason.UNAVAILABLE, Reason.TIMEOUT)[wait_ms]
        await queue.settle(admitted, DeliveryState.RETRY, reason, wait_ms=1 + wait_ms * 1_800_000)
    async with asyncio.timeout(10):  # the figures may be a second old
        while "Retries by" not in (page := await browser.text("/")):
            continue
    captions = re.findall(r"<caption>(Retries[^<]*)</caption>", page)
    assert captions == ["Retries by last result", "Retries by type", "Retries by attempts made"]
    assert all(f'<th scope="row">{text}</th>' in page for text in ("unavailable", "timeout", "due now"))
    assert ("within 0" in page, "within 1 min" in page) == (False, True)
    for address, label in (("/dead", "Dead letters"), ("/hosts?state=2", "Hosts down")):
        assert f'<dt><a href="{address}">{label}</a></dt>' in page


async def test_that_figures_do_not_add_up_is_a_sentence_of_its_own(browser: Browser, queue: Queue) -> None:
    await put(queue, [MadeHost("h0.example")])
    assert (await browser.send("/hosts/h0.example/pause", "/hosts/h0.example")).status == 303
    await queue.enqueue("waits")
    await queue.admit_everywhere()
    counters = f"{queue.keys.partition(0).prefix}:counters"
    await queue.link.call("HINCRBY", counters, "accepted", 1)
    said = ""
    async with asyncio.timeout(10):  # the figures may be a second old
        while "add up" not in said:
            (said,) = re.findall(r'<p class="say warn">(.*?)</p>', await browser.text("/"), re.DOTALL) or [""]
    assert " ".join(re.sub("<[^>]+>", "", said).split()) == (
        "Deliveries are held up by limits of hosts. The figures do not add up: see the runbook."
    )


async def test_a_hosts_state_is_said_in_plain_words(browser: Browser, queue: Queue) -> None:
    filters = dict(re.findall(r'<option value="(\d)">([a-z]+)</option>', await browser.text("/hosts")))
    assert list(filters.values()) == ["ok", "down", "probing", "paused", "gone"]
    terms = ["CLOSED", "OPEN", "HALF_OPEN", "PAUSED", "GONE"]
    assert [f"HOST_STATE_{term}" for term in terms] == pb.HostState.keys()[1:]
    await put(queue, [MadeHost("h0.example")])
    assert '<span class="pill host-ok" title="HOST_STATE_CLOSED">ok</span>' in await browser.text(
        "/hosts/h0.example"
    )


async def test_an_activity_is_looked_up_and_cancelled(browser: Browser, queue: Queue) -> None:
    queued = await queue.enqueue("1", inbox=0)
    await queue.enqueue("1", inbox=1)
    page = await browser.text("/activities?id=https://me.example/1")
    assert all(
        text in page for text in ("https://h0.example/inbox", "https://h1.example/inbox", str(queued.id))
    )
    response = await browser.get(f"/activities?id={queued.id}")
    assert response.headers["Location"] == f"/deliveries/{queued.id}"
    assert "https://h0.example/inbox" in await browser.text(f"/deliveries/{queued.id}")
    response = await browser.send(
        "/activities/cancel", "/activities?id=https://me.example/1", id="https://me.example/1"
    )
    assert response.status == 303
    await queue.is_whole(cancelled=2)


@pytest.mark.parametrize("asked", ["https://me.example/none", "3-1795946523229294"])
async def test_what_was_not_found_can_be_put_right(browser: Browser, asked: str) -> None:
    at = f"/activities?id={asked}" if asked.startswith("https") else f"/deliveries/{asked}"
    response = await browser.get(at)
    text = await response.text()
    assert (response.status, f'name="id" value="{asked}"' in text, 'role="alert"' in text) == (
        404,
        True,
        True,
    )


async def test_dead_letters_are_read_counted_replayed_and_purged(browser: Browser, queue: Queue) -> None:
    await dead_letters(queue, 9)
    page = await browser.text("/dead?host=h1.example")
    ids = re.findall(r'name="ids" value="([^"]+)"', page)
    assert len(ids) == 3
    shown = await browser.text(f"/dead/{ids[0]}")
    assert "&#34;id&#34;: &#34;https://me.example/d" in shown
    letter = await browser.server.operations.GetDeadLetter(pb.GetDeadLetterRequest(delivery_id=ids[0]))
    assert (
        f'<pre tabindex="0">{html.escape(letter.activity.decode()).replace("&quot;", "&#34;")}</pre>' in shown
    )
    digest = base64.b64encode(hashlib.sha256(letter.activity).digest()).decode()
    assert f"{len(letter.activity)} bytes" in shown
    assert f"SHA-256={digest}" in html.unescape(shown)
    counted = await browser.send("/dead/confirm", "/dead", kind="purge", ids=ids[0])
    text = await counted.text()
    assert "<strong>1</strong> dead letter" in text
    await queue.is_whole(dead=9)
    request_id = re.search(r'name="request_id" value="([0-9a-f]+)"', text)
    assert request_id
    fields = {"kind": "purge", "ids": ids[0], "request_id": request_id[1]}
    first = await browser.send("/dead/do", "/dead", **fields)
    again = await browser.send("/dead/do", "/dead", **fields)
    assert first.headers["Location"] == again.headers["Location"], "sent twice, done once"
    counted = await browser.send("/dead/confirm", "/dead", kind="replay", host="h1.example", limit="1")
    assert "There are more than the limit" in await counted.text()
    done = await browser.send("/dead/do", "/dead", kind="replay", host="h1.example", request_id="x")
    at = done.headers["Location"].partition("?")[0]
    for _ in range(400):
        part = await browser.text(f"{at}?part=live")
        if "data-done" in part:
            break
    assert "<strong>2</strong> of 2." in part
    await queue.is_whole(dead=6, purged=1, ready=2)
    assert at.rpartition("/")[2] in await browser.text("/operations")
    for kind in ("whim", "replay whim", "purge everything"):
        assert (await browser.send("/dead/confirm", "/dead", kind=kind)).status == 400


async def test_ticked_ones_and_all_are_two_buttons_and_none_ticked_is_not_all(
    browser: Browser, queue: Queue
) -> None:
    await dead_letters(queue, 6)
    page = await browser.text("/dead?host=h1.example&reason=8&since=2026-01-01T00:30")
    assert "<summary>Filter: host h1.example, reason gone, from 2026-01-01 00:30:00</summary>" in page
    assert all(label in page for label in ("Replay ticked …", "Replay all 2 …", "Purge all 2 …"))
    ids = re.findall(r'name="ids" value="([^"]+)"', page)
    for kind in ("replay ticked", "purge ticked"):
        for path in ("/dead/confirm", "/dead/do"):
            response = await browser.send(path, "/dead", kind=kind, host="h1.example")
            assert (response.status, "is ticked" in await response.text()) == (400, True)
    await queue.is_whole(dead=6)
    for kind, count in (("replay ticked", 1), ("purge all", 2)):
        response = await browser.send("/dead/confirm", "/dead", kind=kind, host="h1.example", ids=ids[0])
        assert f"<strong>{count}</strong> dead letter" in await response.text()


async def test_only_reasons_that_a_dead_letter_can_have_are_offered(browser: Browser) -> None:
    page = await browser.text("/dead")
    offered = {Reason(int(value)) for value in re.findall(r'<option value="(\d+)"', page)}
    assert set(Reason) - offered == {Reason.OK, Reason.CANCELLED, Reason.SUPERSEDED, Reason.EXPIRED}


async def test_a_schedule_is_made_read_paused_and_deleted(browser: Browser) -> None:
    fields = {"schedule_id": "nightly", "cron": "0 4 * * *", "time_zone": "Europe/Berlin", "action": "task",
              "task": "3", "task_arguments": "reason=UNAVAILABLE\nlimit=10", "missed": "1"}  # fmt: skip
    response = await browser.send("/schedules", "/schedules/new", **(fields | {"cron": "0 99 * * *"}))
    text = await response.text()
    assert (response.status, "bad hour" in text, 'value="0 99 * * *"' in text) == (400, True, True)
    response = await browser.send("/schedules", "/schedules/new", **fields)
    assert response.headers["Location"] == "/schedules/nightly?done=created"
    page = await browser.text("/schedules/nightly")
    assert all(text in page for text in ("0 4 * * *", "dead letter replay", "UNAVAILABLE", "10"))
    assert "nightly" in await browser.text("/schedules")
    assert (await browser.send("/schedules/nightly/pause", "/schedules/nightly")).status == 303
    assert "Resume" in await browser.text("/schedules/nightly")
    assert (await browser.send("/schedules/nightly/resume", "/schedules/nightly")).status == 303
    assert (await browser.send("/schedules/nightly/delete", "/schedules/nightly")).status == 303
    assert (await browser.get("/schedules/nightly")).status == 404


async def test_an_interval_is_taken_to_the_millisecond(browser: Browser) -> None:
    fields = {"schedule_id": "often", "action": "task", "task": "4", "missed": "1"}
    for interval in ("inf", "nan", "1e300", "-5", "0"):
        response = await browser.send("/schedules", "/schedules/new", interval=interval, **fields)
        assert (response.status, f'value="{interval}"' in await response.text()) == (400, True)
    assert (await browser.send("/schedules", "/schedules/new", interval="1.5", **fields)).status == 303
    made = await browser.server.operations.GetSchedule(pb.GetScheduleRequest(schedule_id="often"))
    assert made.schedule.interval.ToMilliseconds() == 1500


async def test_the_audit_tells_filters_times_and_numbers_as_other_pages_do(
    browser: Browser, queue: Queue
) -> None:
    await dead_letters(queue, 3)
    since = "2026-01-01T00:30"
    fields = {"kind": "replay", "host": "h1.example", "reason": str(int(Reason.GONE)), "since": since}
    confirmed = html.unescape(await (await browser.send("/dead/confirm", "/dead", **fields)).text())
    chosen = ["<dt>Host</dt><dd>h1.example</dd>", "<dt>Reason</dt><dd>gone</dd>",
              "<dt>From</dt><dd>2026-01-01 00:30:00</dd>"]  # fmt: skip
    assert all(part in confirmed for part in chosen)
    done = await browser.send("/dead/do", "/dead", limit="7", **fields)
    shown = await browser.text(done.headers["Location"])
    assert all(part in shown for part in chosen)
    await browser.send("/dead/do", "/dead", kind="replay")
    await browser.send("/hosts/h0.example/pause", "/hosts/h0.example", reason="A_B", minutes="90")
    async with asyncio.timeout(10):  # events come to the archive a moment after they are told
        while "A_B" not in (page := re.sub(r"<[^>]+>", "", await browser.text("/audit"))):
            continue
    for told in (
        "filter: host h1.example, reason gone, from 2026-01-01 00:30:00", "filter: all", "limit: 7 ",
        "dry run: no", "reason: A_B", "duration: 1 h 30 min",
    ):  # fmt: skip
        assert told in page, told
    assert not re.search(r"fields \{|_ms|7\.0|17672274", page)


async def test_a_new_schedule_tells_what_its_task_takes(browser: Browser) -> None:
    page = re.sub("<[^>]+>", "", await browser.text("/schedules/new"))
    told = {task: re.findall(r"\w+", names.replace(" and ", " ")) for task, names in
            re.findall(r"([A-Z][a-z ]+) takes ([^.]+)\.", page)}  # fmt: skip
    for task, name in pb.MaintenanceTask.items():
        if not name:
            continue
        fields = {"schedule_id": "x", "cron": "0 4 * * *", "task": str(name), "task_arguments": "whim=1"}
        response = await browser.send("/schedules", "/schedules/new", action="task", missed="1", **fields)
        taken = re.search(r"is not known; \w+ takes ([\w, ]+)", await response.text())
        assert taken
        known = taken[1].split(", ") if taken[1] != "none" else []
        assert told.get(task.removeprefix("MAINTENANCE_TASK_").replace("_", " ").capitalize(), []) == known


async def test_keys_are_listed_without_what_is_secret(browser: Browser, rsa_pem: str) -> None:
    put_key = keys_pb.PutKeyRequest(key_id=KEY_ID, private_key_pem=rsa_pem)
    await browser.server.keys.PutKey(put_key)
    page = await browser.text("/keys")
    assert (KEY_ID in page, "rsa 2048" in page) == (True, True)
    assert not any(line in page for line in rsa_pem.splitlines() if line)
    response = await browser.send("/keys/delete", "/keys", key_id=KEY_ID)
    assert response.headers["Location"] == "/keys?done=deleted"
    assert KEY_ID not in await browser.text("/keys")


async def test_where_nothing_is_no_empty_box_says_so(browser: Browser) -> None:
    response = await browser.get("/nope")
    text = await response.text()
    assert (response.status, "There is nothing here" in text, "problem" in text) == (404, True, False)


async def test_what_others_wrote_is_text_and_nothing_else(
    browser: Browser, queue: Queue, rsa_pem: str
) -> None:
    for n, name in enumerate((f"1{EVIL}", "2")):
        await queue.enqueue(name, path=f"/inbox?{EVIL}", inbox=n, kind=EVIL)
    for admitted in await queue.admit_everywhere():
        await queue.settle(admitted, DeliveryState.DEAD, Reason.GONE)
    await browser.send("/hosts/h0.example/pause", "/hosts/h0.example", reason=EVIL)
    letters = (await queue.dead.page(limit=9)).letters
    encoded = {"id": letters[1].activity_id, "principal": EVIL, "q": EVIL, "origin": "me.example"}
    for path in (
        "/dead", *(f"/dead/{letter.id}" for letter in letters), "/hosts", "/hosts/h0.example", "/audit",
        "/activities", f"/dead?activity_type={EVIL}&host=h0.example", f"/nope/{EVIL}",
        f"/sign-in?next={EVIL}",
    ):  # fmt: skip
        url = browser.url(path)
        async with browser.http.get(
            url, params=encoded if path in ("/activities", "/audit", "/hosts") else None
        ) as got:
            text = await got.text()
            assert "<script>alert" not in text, path
            assert "<img src=x" not in text, path
    assert html.escape("<script>alert(1)</script>") in await browser.text("/hosts/h0.example")


async def test_redis_being_away_is_said(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(*_: Any, **__: Any) -> Any:
        raise QueueUnavailable("Redis does not answer")

    monkeypatch.setattr(StatsReader, "read", away)
    response = await browser.get("/")
    assert response.status == 503
    assert "Redis does not answer" in await response.text()


async def test_a_defect_is_logged_and_tells_nothing(
    browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr("fedsvc.server.dashboard.visit.Visit.call", broken)
    response = await browser.get("/hosts")
    assert response.status == 500
    assert "a secret" not in await response.text()


@pytest.mark.parametrize(
    ("settings", "there"),
    [({}, True), ({"FEDSVC_DASHBOARD": "false"}, False), ({"FEDSVC_DASHBOARD_HOSTS": "ops.example"}, True)],
)
async def test_it_can_be_switched_off_and_named(
    environment: dict[str, str], settings: dict[str, str], there: bool
) -> None:
    async with front(chosen(environment, **settings)) as server, browsing(server) as opened:
        assert (await opened.get("/")).status == (200 if there else 404)
        assert (await opened.get("/healthz")).status == 200
        named = (await opened.get("/", Host="ops.example")).status
        assert named == (200 if "FEDSVC_DASHBOARD_HOSTS" in settings else 421 if there else 404)
