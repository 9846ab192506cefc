"""Places that callers share."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from fedsvc.errors import Overloaded, RateLimited
from fedsvc.server.caller import Caller
from fedsvc.server.places import Places

ADA, BOB, EVE = Caller("ada"), Caller("bob"), Caller("eve")


def test_one_caller_has_half_of_them_if_there_are_others() -> None:
    places = Places(4, "calls", lambda: False)
    with ExitStack() as held:
        for _ in range(2):
            held.enter_context(places.taken(ADA))
        with pytest.raises(RateLimited, match="ada has 2 calls already, of 4") as error, places.taken(ADA):
            pass
        assert error.value.retry_after_s == 1
        for _ in range(2):
            held.enter_context(places.taken(BOB))
        with pytest.raises(Overloaded, match="4 calls already"), places.taken(EVE, 5):
            pass
    with places.taken(ADA), places.taken(ADA):
        pass


def test_one_that_is_alone_has_all_of_them_until_there_is_another() -> None:
    alone = True
    places = Places(3, "calls", lambda: alone)
    with ExitStack() as held:
        for _ in range(3):
            held.enter_context(places.taken(ADA))
        with pytest.raises(Overloaded, match="3 calls already"), places.taken(ADA):
            pass
    alone = False
    with places.taken(ADA), pytest.raises(RateLimited), places.taken(ADA):
        pass


def test_a_place_is_free_again_however_a_call_ends() -> None:
    places = Places(1, "calls")
    with pytest.raises(ZeroDivisionError), places.taken(ADA):
        raise ZeroDivisionError
    with places.taken(ADA):
        pass
    with pytest.raises(Overloaded), Places(0, "calls").taken(ADA):
        pass
