from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fedsvc.errors import InvalidInput
from fedsvc.server import pages


def test_a_token_leads_on_only_in_the_list_that_gave_it() -> None:
    token = pages.encode("3-77", "activity", [6])
    assert pages.decode(token, "activity", [6], read=pages.text) == "3-77"
    with pytest.raises(InvalidInput, match="other arguments"):
        pages.decode(token, "another", [6], read=pages.text)


def test_the_first_page_has_no_position() -> None:
    assert pages.decode("", "activity", read=pages.text) is None


@pytest.mark.parametrize("token", ["x", "%%%", "AAAA", "bnVsbA", "W10", "é"])
def test_a_token_that_was_made_up_is_refused(token: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        pages.decode(token, read=pages.text)
    assert refused.value.field == "page_token"


@pytest.mark.parametrize("read", [pages.number, pages.text])
@pytest.mark.parametrize("position", [None, True, -1, 2**63, 1.5, "a\0b", "x" * 9000, [], {}, [1, "x"]])
def test_a_position_that_no_list_has_given_is_refused_though_the_token_fits(
    read: Callable[[Any], object], position: Any
) -> None:
    with pytest.raises(InvalidInput, match="not one that this server gave") as refused:
        pages.decode(pages.encode(position, "me"), "me", read=read)
    assert refused.value.field == "page_token"


@pytest.mark.parametrize(
    ("read", "position"),
    [
        (pages.number, 0),
        (pages.number, 2**63 - 1),
        (pages.text, ""),
        (pages.text, "x" * 8192),
        (pages.number_and_text, (0, "x")),
    ],
)
def test_a_position_may_be_at_its_bounds(read: Callable[[Any], object], position: Any) -> None:
    assert pages.decode(pages.encode(position, "me"), "me", read=read) == position


def test_a_text_past_its_bound_and_a_pair_of_another_length_are_refused() -> None:
    pairs: list[tuple[Callable[[Any], object], Any]] = [
        (pages.text, "x" * 8193),
        (pages.number_and_text, [1]),
        (pages.number_and_text, [1, "x", 2]),
        (pages.number_and_text, "1x"),
    ]
    for read, position in pairs:
        with pytest.raises(InvalidInput, match="not one that this server gave"):
            pages.decode(pages.encode(position, "me"), "me", read=read)


def test_page_sizes_have_a_default_and_a_limit() -> None:
    assert [pages.page_size(n) for n in (0, 1, 1000, 5000)] == [100, 1, 1000, 1000]
    with pytest.raises(InvalidInput, match="negative"):
        pages.page_size(-1)
