"""What is checked of a release: its version, its changelog, its contract, its formats."""

from __future__ import annotations

import datetime
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from fedsvc.queue.format import FORMAT
from tools.release import checks, contract, cut, formats, versions
from tools.release.versions import ROOT, Version

DAY = datetime.date(2026, 11, 24)
CHANGELOG = "# Changelog\n\n## Unreleased\n\n### Added\n\n- Tea.\n"
RELEASED = CHANGELOG.replace("## Unreleased\n", "## Unreleased\n\n## 0.1.0 - 2026-11-24\n")
NEWEST = checks.RELEASES / str(checks.kept()[0])


def git(root: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=t", "-c", "user.email=t@t.example", "-c", "commit.gpgsign=false")
    subprocess.run(["git", "-C", str(root), *identity, *arguments], check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """All that has a version, and the contract."""
    for name in (*versions.found(), "CHANGELOG.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "proto", tmp_path / "proto")
    return tmp_path


@pytest.fixture
def repository(checkout: Path) -> Path:
    git(checkout, "init", "-b", "main")
    git(checkout, "add", "-A")
    git(checkout, "commit", "-m", "first")
    git(checkout, "update-ref", "refs/remotes/origin/main", "HEAD")
    return checkout


def test_this_checkout_is_in_order() -> None:
    # what is told of work under way is for `make lint`
    assert [problem for problem in checks.problems() if "says nothing of" not in problem] == []


def test_a_version_is_written_wherever_one_stands(checkout: Path) -> None:
    versions.bump(Version(7, 8, 9), checkout)
    assert set(versions.found(checkout).values()) == {"7.8.9"}
    assert versions.current(checkout) == (7, 8, 9)


def test_versions_that_differ_are_told(checkout: Path) -> None:
    path = checkout / "fedsvc/__init__.py"
    path.write_text('__version__ = "9.9.9"\n')
    with pytest.raises(ValueError, match=r"versions differ.*9\.9\.9"):
        versions.current(checkout)
    path.write_text("")
    with pytest.raises(ValueError, match=r"fedsvc/__init__\.py has 0 versions"):
        versions.current(checkout)


@pytest.mark.parametrize("text", ["1.2", "v1.2.3", "1.2.3.dev0", "01.2.3", "", "1.2.x"])
def test_what_is_no_version_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no version"):
        Version.parse(text)


def test_a_release_takes_what_was_unreleased() -> None:
    told = versions.with_release(CHANGELOG, Version(0, 1, 0), DAY)
    assert versions.sections(told) == [("Unreleased", ""), ("0.1.0 - 2026-11-24", "### Added\n\n- Tea.")]
    assert versions.released(told) == [(0, 1, 0)]
    assert list(versions.changelog_problems(told)) == []


@pytest.mark.parametrize(
    ("text", "version", "problem"),
    [
        (RELEASED, "0.2.0", "nothing is unreleased"),
        (RELEASED.replace("Unreleased\n", "Unreleased\n\n- More.\n"), "0.1.0", "not after 0.1.0"),
        (RELEASED.replace("Unreleased\n", "Unreleased\n\n- More.\n"), "0.0.9", "not after 0.1.0"),
    ],
)
def test_a_release_that_cannot_be_is_refused(text: str, version: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        versions.with_release(text, Version.parse(version), DAY)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("## 0.1.0 - 2026-11-24\n\n- Tea.", "CHANGELOG.md does not begin with ## Unreleased"),
        ("## Unreleased\n\n## Next", "CHANGELOG.md: ## Next is not X.Y.Z - YYYY-MM-DD"),
        ("## Unreleased\n\n## 0.1.0 - 2026-13-01\n\n- Tea.", "CHANGELOG.md: 2026-13-01 is no date"),
        ("## Unreleased\n\n## 0.1.0 - 2026-11-01\n", "CHANGELOG.md: ## 0.1.0 - 2026-11-01 is empty"),
        (
            "## Unreleased\n\n### Brewed\n",
            "CHANGELOG.md: ### Brewed is none of Added, Changed, Deprecated, Removed, Fixed, Security",
        ),
        (
            "## Unreleased\n\n## 0.1.0 - 2026-11-01\n\n- Tea.\n\n## 0.1.0 - 2026-10-01\n\n- Tea.\n",
            "CHANGELOG.md: 0.1.0 stands above 0.1.0",
        ),
    ],
)
def test_a_changelog_out_of_form_is_told(text: str, problem: str) -> None:
    assert list(versions.changelog_problems(text)) == [problem]


def test_a_contract_that_takes_something_away_fails(checkout: Path) -> None:
    kept, types = NEWEST / contract.IMAGE, checkout / "proto/fedsvc/v1/types.proto"
    assert list(contract.breaking(kept, checkout / "proto")) == []
    whole = types.read_text()
    types.write_text(whole.replace("  REASON_OTHER = 40;", "  REASON_OTHER = 40;\n  REASON_NEW = 41;"))
    assert list(contract.breaking(kept, checkout / "proto")) == []
    for before, after, said in (
        ("  int32 http_status = 3;", "", 'Previously present field "3" with name "http_status"'),
        ("  int32 http_status = 3;", "  int32 http_status = 33;", "http_status"),
        ("  int32 http_status = 3;", "  string http_status = 3;", "changed type"),
        ("  REASON_OTHER = 40;", "", 'Previously present enum value "40"'),
    ):
        types.write_text(whole.replace(before, after))
        found = "\n".join(contract.breaking(kept, checkout / "proto"))
        assert said in found
        assert f"breaks the contract of {NEWEST.name}: " in found


def test_a_call_that_is_gone_fails(checkout: Path) -> None:
    service = checkout / "proto/fedsvc/v1/key_service.proto"
    lines = service.read_text().splitlines(keepends=True)
    service.write_text("".join(line for line in lines if "rpc ListKeys(" not in line))
    assert "ListKeys" in "\n".join(contract.breaking(NEWEST / contract.IMAGE, checkout / "proto"))


def test_a_kept_contract_is_held_against_the_tag_where_there_is_one(repository: Path) -> None:
    kept = repository / "kept.binpb"
    contract.image("proto", kept, repository)
    assert contract.tags(repository) == []
    git(repository, "tag", "v0.1.0")
    git(repository, "tag", "other")
    assert contract.tags(repository) == ["v0.1.0"]
    assert list(contract.differs_from_tag(kept, "v0.1.0", repository)) == []
    types = repository / "proto/fedsvc/v1/types.proto"
    types.write_text(types.read_text().replace("http_status = 3", "http_status = 33"))
    contract.image("proto", kept, repository)
    assert list(contract.differs_from_tag(kept, "v0.1.0", repository)) == [
        "kept.binpb is not the contract at the tag v0.1.0"
    ]
    assert "cannot be read" in next(contract.differs_from_tag(kept, "v9.9.9", repository))


def test_a_change_without_a_word_of_it_is_told(repository: Path) -> None:
    assert list(checks.untold_changes(repository)) == []
    (repository / "README.md").write_text("hello")
    assert list(checks.untold_changes(repository)) == []
    (repository / "fedsvc/__init__.py").write_text("changed = True\n")
    assert list(checks.untold_changes(repository)) == [
        "CHANGELOG.md says nothing of what was changed since origin/main: fedsvc/__init__.py"
    ]
    git(repository, "commit", "-a", "-m", "second")
    assert list(checks.untold_changes(repository)) != []
    with (repository / "CHANGELOG.md").open("a") as changelog:
        changelog.write("- Changed.\n")
    assert list(checks.untold_changes(repository)) == []
    assert list(checks.untold_changes(repository, "nowhere/main")) == []


NOW = Version.parse(NEWEST.name)
NEXT = Version(NOW.major, NOW.minor + 1, 0)
PATCH = Version(NOW.major, NOW.minor, NOW.patch + 1)


@pytest.mark.parametrize(
    ("version", "released", "step", "problem"),
    [
        (NOW, [], 0, f"record: not as in releases/{NOW}, which is not released: run `make snapshot`"),
        (
            PATCH,
            [NOW],
            1,
            f"format, record: not as {NOW} has them; a format changes with a minor version only",
        ),
        (NEXT, [NOW], 0, f"record: not as {NOW} has them: FORMAT must be 2"),
        (NEXT, [NOW], 2, f"format, record: not as {NOW} has them: FORMAT must be 2"),
        (NEXT, [NOW], 1, None),
    ],
)
def test_a_form_changes_with_a_step_of_the_format_and_a_minor_version(
    monkeypatch: pytest.MonkeyPatch, version: Version, released: list[Version], step: int, problem: str | None
) -> None:
    now: dict[str, Any] = formats.golden() | {"record": "00", "format": FORMAT + step}
    monkeypatch.setattr(formats, "golden", lambda: now)
    assert list(checks.format_problems(version, released)) == ([] if problem is None else [problem])


def test_a_release_of_which_nothing_is_kept_is_told() -> None:
    assert list(checks.format_problems(NEXT, [NOW, Version(0, 0, 1)])) == ["releases/ has nothing of 0.0.1"]
    assert f"releases/{NOW} is neither released nor" in next(checks.format_problems(NEXT, []))


def test_what_is_released_is_not_written_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "released", lambda _: [NOW])
    with pytest.raises(ValueError, match=r"is released, and what comes is held against it"):
        cut.snapshot()
    with pytest.raises(ValueError, match=rf"{NOW} is not after {NOW}, which is released"):
        cut.set_next(str(NOW))
