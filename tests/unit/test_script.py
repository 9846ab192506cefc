"""How Lua scripts are put together."""

from __future__ import annotations

import re

import pytest

from fedsvc.queue.assembly import assemble
from fedsvc.queue.script import Script

PRELUDE = """-- A comment that speaks of unused().
local call = redis.call
local READY, DEAD = 1, 7 -- states
local function unused() return DEAD end
local function inner(x)
  if x then return x end
end
local function outer(x)
  return inner(x)
end
"""


def test_a_function_that_nothing_comes_to_is_left_out() -> None:
    source = assemble([PRELUDE], "return outer(call('GET', 'x'))")
    assert re.findall(r"local function (\w+)", source) == ["inner", "outer"]


def test_numbers_with_a_name_stand_where_they_are_used_but_not_in_texts() -> None:
    source = assemble([PRELUDE], "return { READY, DEAD, 'DEAD' }")
    assert "return { 1, 7, 'DEAD' }" in source
    assert "local READY" not in source


def test_each_part_is_a_function_inside_the_one_before() -> None:
    source = assemble([PRELUDE, "local function late() return outer(1) end\n"], "return late()")
    assert (
        source.index("local call") < source.index("return (function()") < source.index("local function late")
    )
    assert source.count("return (function()") == source.count("end)()") == 2


def test_no_function_uses_more_variables_around_it_than_lua_allows() -> None:
    names = [f"v{i}" for i in range(61)]
    many = "".join(f"local {name} = redis.call\n" for name in names)
    source = assemble(
        [many, "local function last() return 1 end\n"], f"return {{ last(), {', '.join(names)} }}"
    )
    # The part with all of them stays on one level with the next; the body has a function of its own.
    assert source.count("return (function()") == 1


def test_a_script_that_needs_nothing_gets_nothing() -> None:
    assert "redis.call('TIME')" not in Script("begin_operation").source


SELDOM = """local call = redis.call
local most = 1
local function used() return call('GET', 'used') end
local function rare() return used() end
local function rarer()
  return rare() + most
end
local function usual(x) return x > most and rarer() or used() end
"""


def test_what_is_seldom_needed_is_made_when_it_is() -> None:
    source = assemble([SELDOM], "rarer()\nreturn usual(1)", ["rarer"])
    assert source == (
        "local cold, warm\n"
        "local call = redis.call\n"
        "local most = 1\n"
        "local function used() return call('GET', 'used') end\n"
        "warm = function()\n"
        "if cold then return cold end\n"
        "local function rare() return used() end\n"
        "local function rarer()\n"
        "  return rare() + most\n"
        "end\n"
        "cold = { rarer = rarer }\n"
        "return cold\n"
        "end\n"
        "local function usual(x) return x > most and warm().rarer() or used() end\n"
        "\n"
        "return (function()\n"
        "warm().rarer()\n"
        "return usual(1)\n"
        "end)()\n"
    )


def test_fields_and_texts_of_the_name_of_what_is_seldom_needed_stay() -> None:
    body = "local h = {}\nh.rare = 'rare'\nreturn usual(h.rare) or rare()"
    source = assemble([SELDOM], body, ["rare"])
    assert "h.rare = 'rare'\nreturn usual(h.rare) or warm().rare()" in source


LATE = "local function late() return 1 end\nreturn first + late()"
MANY = [f"v{i}" for i in range(60)]


@pytest.mark.parametrize(
    ("body", "seldom", "problem"),
    [
        ("return usual(1)", ["rarest"], "there is no function rarest"),
        (f"local first = rare()\n{LATE}", ["rare", "late"], "needed before it is there: rare"),
        (f"local first = usual(1)\n{LATE}", ["rarer", "late"], "needed before it is there: rarer"),
        ("local function f() return rare() end\nreturn f(rare)", ["rare"], "not only called: rare"),
        ("local rare = 1\nreturn rare", ["rare"], "not only called: rare"),
        ("local most = 2\nlocal function f() return most end\nreturn f()", ["f"], "two variables.* most"),
        ("local function rare() return 1 end\nreturn rare()", [], "two functions.* rare"),
        (
            "".join(f"local {name} = call('GET', '')\n" for name in MANY)
            + f"local function f() return {' + '.join(MANY)} end\nreturn f()",
            ["f"],
            "60 variables",
        ),
    ],
)
def test_what_cannot_be_left_for_later_is_told(body: str, seldom: list[str], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        assemble([SELDOM], body, seldom)
