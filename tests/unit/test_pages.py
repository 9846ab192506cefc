from __future__ import annotations

import pytest

from fedsvc.errors import InvalidInput
from fedsvc.server import pages


def test_a_token_leads_on_only_in_the_list_that_gave_it() -> None:
    token = pages.encode("3-77", "activity", [6])
    assert pages.decode(token, "activity", [6]) == "3-77"
    with pytest.raises(InvalidInput, match="other arguments"):
        pages.decode(token, "another", [6])


def test_the_first_page_has_no_position() -> None:
    assert pages.decode("", "activity") is None


@pytest.mark.parametrize("token", ["x", "%%%", "AAAA", "bnVsbA", "W10", "é"])
def test_a_token_that_was_made_up_is_refused(token: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        pages.decode(token)
    assert refused.value.field == "page_token"


def test_page_sizes_have_a_default_and_a_limit() -> None:
    assert [pages.page_size(n) for n in (0, 1, 1000, 5000)] == [100, 1, 1000, 1000]
    with pytest.raises(InvalidInput, match="negative"):
        pages.page_size(-1)
