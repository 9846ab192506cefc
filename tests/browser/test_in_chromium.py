"""The dashboard as operators use it: with mouse or keyboard, on a phone, in the dark, without script."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from axe_playwright_python.async_playwright import Axe  # type: ignore[import-untyped]
from playwright.async_api import Browser, expect
from servers.front import Front, front
from servers.hosts import put, some_hosts
from servers.queue import Queue, open_queue
from servers.valkey import valkey_server

from browser.chromium import Watched, chromium, opened, program
from fedsvc.config import Settings
from fedsvc.domain.delivery import DeliveryState, Reason
from fedsvc.domain.keys import KeyCipher
from fedsvc.server.caller import Caller
from fedsvc.server.tokens import entry_text, new_token
from fedsvc.v1 import operations_service_pb2 as pb

pytestmark = pytest.mark.asyncio(loop_scope="module")
TOKEN = new_token()
HOSTS = 10_000
PAGES = (
    "/",
    "/hosts",
    "/activities",
    "/dead",
    "/operations",
    "/schedules",
    "/schedules/new",
    "/keys",
    "/audit",
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    if program() is None:
        pytest.skip("there is no Chromium on PATH (apt-get install chromium)")
    async with chromium() as started:
        yield started


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Front, Queue]]:
    """10,000 hosts, some dead letters, a schedule and what was done."""
    directory = tmp_path_factory.mktemp("dashboard")
    with valkey_server(directory) as valkey:
        settings = Settings.from_environment(
            {
                "REDIS_URL": valkey.url,
                "DATABASE_URL": f"sqlite:///{directory / 'archive.db'}",
                "FEDSVC_PARTITIONS": "4",
                "FEDSVC_KEY_ENCRYPTION_KEYS": KeyCipher.generate(),
                "FEDSVC_LISTEN": "127.0.0.1:0",
                "FEDSVC_HTTP_LISTEN": "127.0.0.1:0",
                "FEDSVC_TOKENS": entry_text(Caller("ada"), TOKEN),
            }
        )
        async with front(settings) as server, open_queue(valkey.url, "fedsvc") as queue:
            await put(queue, some_hosts(HOSTS))
            for n in range(30):
                await queue.enqueue(f"d{n}", inbox=n % 3)
            for admitted in await queue.admit_everywhere():
                await queue.settle(admitted, DeliveryState.DEAD, Reason.GONE)
            await queue.enqueue("waits", inbox=1)
            me = (("authorization", f"Bearer {TOKEN}"),)
            schedule = pb.Schedule(schedule_id="nightly", cron="0 4 * * *", task=pb.MAINTENANCE_TASK_CLEANUP)
            await server.operations.CreateSchedule(pb.CreateScheduleRequest(schedule=schedule), metadata=me)
            await server.operations.PauseHost(pb.PauseHostRequest(host="h1.example"), metadata=me)
            yield server, queue


async def signed_in(watched: Watched, at: str = "/") -> None:
    page = watched.page
    await page.goto(at)
    await page.get_by_label("Token").fill(TOKEN)
    await page.get_by_role("button", name="Sign in").click()
    await expect(page.get_by_role("button", name="Sign out")).to_be_visible()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1200, 390], ids=["wide", "phone"])
async def test_every_page_is_accessible_asks_nobody_else_and_fits(
    browser: Browser, site: tuple[Front, Queue], dark: bool, width: int
) -> None:
    base = f"http://{site[0].http}"
    letter = (await site[1].dead.page(limit=1)).letters[0]
    async with opened(browser, base, width=width, dark=dark) as watched:
        await signed_in(watched)
        more = ("/hosts/h1.example", f"/dead/{letter.id}", f"/activities?id={letter.activity_id}", "/nope")
        for path in (*PAGES, *more):
            await watched.page.goto(path)
            found = await Axe().run(watched.page)
            assert found.violations_count == 0, (path, found.generate_report())
            overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            assert await watched.page.evaluate(overflow) <= 0, f"{path} scrolls sideways"
        assert all(url.startswith(base) for url in watched.requests), watched.requests
        assert [c for c in watched.complaints if "404" not in c] == []


async def test_on_a_phone_menu_and_filter_leave_room_for_what_is_shown(
    browser: Browser, site: tuple[Front, Queue]
) -> None:
    async with opened(browser, f"http://{site[0].http}", width=390, height=844) as watched:
        await signed_in(watched, "/dead")
        page = watched.page
        box = await page.locator("tbody tr").first.bounding_box()
        assert box is not None
        assert box["y"] < 500
        await expect(page.get_by_label("Host")).to_be_hidden()
        await page.keyboard.press("/")
        await expect(page.get_by_label("Host")).to_be_focused()
        field = await page.get_by_label("Host").bounding_box()
        assert field is not None
        assert field["width"] > 340
        await page.keyboard.type("h1.example")
        await page.keyboard.press("Enter")
        await expect(page.get_by_text("Filter: host h1.example", exact=True)).to_be_visible()
        await expect(page.get_by_label("Host")).to_be_hidden()
        await page.goto("/audit")
        await expect(page.get_by_role("link", name="Audit")).to_be_in_viewport()
    async with opened(browser, f"http://{site[0].http}") as watched:
        await signed_in(watched, "/dead")
        await expect(watched.page.get_by_label("Host")).to_be_visible()
        await expect(watched.page.get_by_text("Filter", exact=True)).to_be_hidden()


async def test_figures_come_by_themselves_and_can_be_held(
    browser: Browser, site: tuple[Front, Queue]
) -> None:
    async with opened(browser, f"http://{site[0].http}") as watched:
        await signed_in(watched)
        page = watched.page
        async with page.expect_response(lambda r: "part=live" in r.url and r.ok):
            pass
        pending = page.locator(".tiles dd").first
        before = await pending.inner_text()
        await site[1].enqueue("one-more", inbox=2)
        await expect(pending).not_to_have_text(before)
        await page.get_by_role("button", name="Hold").click()
        await expect(page.get_by_role("button", name="Go on")).to_have_attribute("aria-pressed", "true")
        assert watched.complaints == []


async def test_with_the_keyboard_alone(browser: Browser, site: tuple[Front, Queue]) -> None:
    async with opened(browser, f"http://{site[0].http}") as watched:
        page = watched.page
        await page.goto("/hosts")
        await expect(page.get_by_label("Token")).to_be_focused()
        await page.keyboard.type(TOKEN)
        await page.keyboard.press("Enter")
        await expect(page).to_have_url(f"http://{site[0].http}/hosts")
        await page.keyboard.press("Tab")
        await expect(page.get_by_text("Skip to content")).to_be_focused()
        await page.keyboard.press("Enter")
        await expect(page.locator("main")).to_be_focused()
        await page.keyboard.press("/")
        await page.keyboard.type("host-00042")
        await page.keyboard.press("Enter")
        await expect(page.locator("tbody tr")).to_have_count(1)
        for _ in range(20):
            await page.keyboard.press("Tab")
            if await page.evaluate("document.activeElement.textContent") == "host-00042.example":
                break
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("heading", level=1)).to_have_text("host-00042.example")


async def test_ten_thousand_hosts_are_sorted_and_paged(browser: Browser, site: tuple[Front, Queue]) -> None:
    async with opened(browser, f"http://{site[0].http}") as watched:
        await signed_in(watched, "/hosts?sort=backlog")
        page = watched.page
        await expect(page.locator("tbody tr")).to_have_count(100)
        first = await page.locator("tbody th").first.inner_text()
        await page.get_by_role("link", name="Next page").click()
        await expect(page.locator("tbody th").first).not_to_have_text(first)
        await page.get_by_label("State").select_option("paused")
        await page.get_by_role("button", name="Show").click()
        await expect(page.locator("tbody th")).to_have_text(["h1.example"])


@pytest.mark.parametrize("script", [True, False], ids=["script", "no script"])
async def test_a_dead_letter_is_chosen_confirmed_and_replayed(
    browser: Browser, site: tuple[Front, Queue], script: bool
) -> None:
    async with opened(browser, f"http://{site[0].http}", script=script) as watched:
        await signed_in(watched, "/dead")
        page = watched.page
        before = (await site[1].conserved()).dead_letters
        await page.locator("tbody input[type=checkbox]").first.check()
        await page.get_by_role("button", name="Replay ticked …").click()
        await expect(page.locator("main")).to_contain_text("1 dead letter will be sent again")
        await page.get_by_role("button", name="Replay 1").click()
        await expect(page.get_by_role("heading", level=1)).to_contain_text("Operation")
        if not script:
            for _ in range(200):
                if "1 of 1." in await page.locator("main").inner_text():
                    break
                await page.reload()
        await expect(page.locator("main")).to_contain_text("1 of 1.")
        assert (await site[1].conserved()).dead_letters == before - 1
        assert watched.complaints == []


async def test_a_host_is_paused_and_resumed(
    browser: Browser, site: tuple[Front, Queue], tmp_path: Path
) -> None:
    async with opened(browser, f"http://{site[0].http}") as watched:
        await signed_in(watched, "/hosts/h2.example")
        page = watched.page
        await page.get_by_label("Why").fill("they asked <b>nicely</b>")
        await page.get_by_role("button", name="Pause").click()
        await expect(page.get_by_role("status")).to_have_text("Paused.")
        await expect(page.locator("main")).to_contain_text("they asked <b>nicely</b>")
        await page.get_by_role("button", name="Resume").click()
        await expect(page.get_by_role("button", name="Pause")).to_be_visible()
        await page.screenshot(path=tmp_path / "host.png")
        assert (tmp_path / "host.png").stat().st_size > 10_000
        await page.get_by_role("button", name="Sign out").click()
        await expect(page.get_by_label("Token")).to_be_visible()
        await page.go_back()
        await page.reload()
        await expect(page.get_by_label("Token")).to_be_visible()
