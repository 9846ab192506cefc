"""How Lua scripts are put together."""

from __future__ import annotations

import re

from fedsvc.queue.script import Script, assemble

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
