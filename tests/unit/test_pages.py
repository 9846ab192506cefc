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


def test_page_sizes_have_a_default_and_a_limit() -> None:
    assert [pages.page_size(n) for n in (0, 1, 1000, 5000)] == [100, 1, 1000, 1000]
    with pytest.raises(InvalidInput, match="negative"):
        pages.page_size(-1)
