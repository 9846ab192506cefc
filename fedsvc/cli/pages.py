"""Lists that a server gives page by page: options that they take, and how a page is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import click

from fedsvc.cli.output import Column, emit, show_table


class Page(Protocol):
    @property
    def next_page_token(self) -> str: ...


def page_options(usual: int = 50) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`limit` and `page_token`."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        return limit_option(usual)(
            click.option("--page-token", default="", help="Go on where a list before ended.")(command)
        )

    return add


def limit_option(usual: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(
        "--limit", type=click.IntRange(1, 1000), default=usual, show_default=True, help="At most so many."
    )


def show_page(
    page: Page,
    as_json: bool,
    columns: Sequence[Column],
    rows: Iterable[Sequence[Any]],
    *,
    none: str,
    more: str = "There are more",
) -> None:
    """Print a page: all of it as JSON, or its `rows` as `show_table` does, and how to get the next."""
    if as_json:
        emit(page, True, "")
        return
    show_table(columns, rows, none=none)
    if page.next_page_token:
        click.echo(f"{more}: --page-token {page.next_page_token}")
