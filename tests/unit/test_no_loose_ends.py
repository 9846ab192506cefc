"""Nothing half-done is left lying about: settings nobody reads, scripts nobody runs, notes to oneself."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from fedsvc.config import Settings
from fedsvc.config_files import URLS

ROOT = Path(__file__).resolve().parents[2]
GENERATED = (
    "fedsvc/v1",
    "clients/python/src/fedsvc_client/_proto",
)
FOLDERS = ("fedsvc", "clients/python", "tests", "tools", "benchmarks", "proto", "docs")
KINDS = {".py", ".lua", ".proto", ".md", ".toml", ".mako"}
LONGEST_MODULE = 400
SCRIPTS = sorted((ROOT / "fedsvc/queue/lua").glob("*.lua"))


def sources() -> Iterator[Path]:
    """All that people write and read, without what is generated."""
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            name = str(path.relative_to(ROOT))
            generated = name.startswith(GENERATED) or "node_modules" in path.parts
            if path.is_file() and path.suffix in KINDS and not generated:
                yield path
    yield from ROOT.glob("*.md")
    yield from (ROOT / "Makefile", ROOT / "pyproject.toml", ROOT / ".ci/run")


def found(pattern: str, paths: Iterable[Path]) -> list[str]:
    looked_for = re.compile(pattern, re.MULTILINE)
    return [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in paths
        if path != Path(__file__)
        for match in looked_for.finditer(path.read_text())
    ]


def code(folder: str) -> Iterator[Path]:
    return (path for path in sources() if path.suffix == ".py" and path.is_relative_to(ROOT / folder))


def test_nobody_left_a_note_to_do_something_later() -> None:
    assert found(r"\b(TODO|FIXME|XXX|HACK|TBD|BENCH)\b", sources()) == []


def test_no_test_is_switched_off() -> None:
    switched_off = found(r"mark\.(skip|xfail)\b|pytest\.(skip|xfail)\(", code("tests"))
    # no wheel has a Redis with TLS: without one on PATH there is nothing to test; nor is there without npm's
    # registry for what comes from there, or without a browser; Helm in a wheel is for one platform; nor
    # has every machine systemd, or a kernel that lets us hold processes to a share of a core
    assert {where.partition(":")[0] for where in switched_off} == {
        "tests/integration/test_topologies.py",
        "tests/integration/test_benchmark_instruments.py",
        "tests/deploy/test_systemd.py",
        "tests/interop/conftest.py",
        "tests/browser/test_in_chromium.py",
        "tests/deploy/programs.py",
    }
    assert len(switched_off) == 6


def test_no_function_is_only_promised() -> None:
    assert found(r"NotImplementedError", code("fedsvc")) == []


def test_types_are_ignored_only_by_name_of_what_is_ignored() -> None:
    assert found(r"# (type: ignore(?!\[)|noqa(?!:)).*$", sources()) == []


def test_no_module_is_so_long_that_it_should_be_two() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in code("fedsvc")
        if (lines := len(path.read_text().splitlines())) > LONGEST_MODULE
    }
    assert long == {}


@pytest.mark.parametrize("field", Settings.model_fields)
def test_every_setting_is_read_somewhere(field: str) -> None:
    config = ROOT / "fedsvc/config.py"
    others = [path for path in code("fedsvc") if path != config]
    secret = rf"\.secret\(\"{field.removesuffix('_file')}\""
    inside = re.search(rf"self\.{field}\b|{secret}", config.read_text())
    in_its_place = field in URLS.values()
    assert inside or in_its_place or found(rf"\.{field}\b|{secret}", others), (
        f"nothing reads {Settings.variable(field)}"
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_script_is_run_by_somebody_and_says_what_it_does(script: Path) -> None:
    header = re.match(r"(?:--.*\n)+(?:\n--.*(?:\n--.*)*)?", script.read_text())
    assert header is not None
    parts = {part for path in SCRIPTS for part in re.findall(r"^-- uses: (.+)$", path.read_text(), re.M)}
    if script.stem in {name for part in parts for name in part.split(", ")}:
        assert "for scripts that" in script.read_text(), "it is not said which scripts use it"
    elif script.stem != "prelude":
        assert "KEYS[1]" in header[0]
        assert script.read_text().startswith(f"-- {script.stem}: ")
        assert "Result" in header[0], "its result is not described"
        assert found(rf'Script\("{script.stem}"\)', code("fedsvc/queue")), "nobody runs it"
