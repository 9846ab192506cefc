"""Chromium of the system, without a window; every request and every complaint of a page is written down."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from playwright.async_api import Browser, ConsoleMessage, Error, Page, Request, async_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")


def program() -> str | None:
    """Where it is; None if there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=program(), args=["--no-sandbox", "--disable-gpu"]
        )
        try:
            yield browser
        finally:
            await browser.close()


@dataclass
class Watched:
    """A page, and what went on in it."""

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def on_console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def on_request(self, request: Request) -> None:
        self.requests.append(request.url)

    def on_error(self, error: Error) -> None:
        self.complaints.append(str(error))


@asynccontextmanager
async def opened(
    browser: Browser,
    base: str,
    *,
    width: int = 1200,
    height: int = 800,
    dark: bool = False,
    script: bool = True,
) -> AsyncIterator[Watched]:
    """A page of a browser that nobody has used yet."""
    context = await browser.new_context(
        base_url=base,
        viewport={"width": width, "height": height},
        color_scheme="dark" if dark else "light",
        java_script_enabled=script,
        reduced_motion="reduce",
    )
    page = await context.new_page()
    page.set_default_timeout(20_000)
    watched = Watched(page)
    page.on("console", watched.on_console)
    page.on("request", watched.on_request)
    page.on("pageerror", watched.on_error)
    try:
        yield watched
    finally:
        await context.close()
