"""The page that is committed says what a run gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from interop.node import HOME, NoRegistry, install
from interop.page import PAGE, make_page
from interop.verifiers import Inboxes


@pytest.mark.asyncio(loop_scope="module")
async def test_the_page_is_what_a_run_gives(inboxes: Inboxes) -> None:
    assert PAGE.read_text() == await make_page(inboxes), "cd tests && ../.venv/bin/python -m interop --write"


def test_the_lock_of_npm_has_hashes_and_names_no_registry() -> None:
    text = (HOME / "package-lock.json").read_text()
    packages = json.loads(text)["packages"]
    assert all(package.get("integrity") for name, package in packages.items() if name)
    assert '"resolved"' not in text
    assert packages[""]["dependencies"] == json.loads((HOME / "package.json").read_text())["dependencies"]


def test_without_a_registry_it_is_told_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("package.json", "package-lock.json", ".npmrc"):
        (tmp_path / name).write_bytes((HOME / name).read_bytes())
    monkeypatch.setattr("interop.node.HOME", tmp_path)
    monkeypatch.setattr("interop.node._STAMP", tmp_path / "node_modules/.installed")
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "cache"))
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9/")
    monkeypatch.setenv("npm_config_fetch_retries", "0")
    with pytest.raises(NoRegistry, match=r"npm ci failed: .*ECONNREFUSED"):
        install()
