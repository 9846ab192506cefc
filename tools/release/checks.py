"""What must hold at every moment, released or not."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

from tools.release import contract, formats, versions
from tools.release.versions import ROOT, Version

RELEASES = ROOT / "releases"
#: a change to any of these is one that users want to read of
TOLD = ("fedsvc", "clients", "proto", "deploy", "docs", "pyproject.toml")


def kept() -> list[Version]:
    """Versions of which releases/ has something, newest first."""
    return sorted((Version.parse(path.name) for path in RELEASES.iterdir() if path.is_dir()), reverse=True)


def problems() -> Iterator[str]:
    try:
        version = versions.current()
    except ValueError as error:
        yield str(error)
        return
    text = (ROOT / "CHANGELOG.md").read_text()
    yield from versions.changelog_problems(text)
    yield from untold_changes()
    yield from contract_problems()
    yield from format_problems(version, versions.released(text))


def contract_problems() -> Iterator[str]:
    """The newest release's contract is kept, and the kept ones are those of the tags."""
    yield from contract.breaking(RELEASES / str(kept()[0]) / contract.IMAGE)
    for tag in contract.tags():
        image = RELEASES / tag.removeprefix("v") / contract.IMAGE
        if image.is_file():
            yield from contract.differs_from_tag(image, tag)


def format_problems(version: Version, released: list[Version]) -> Iterator[str]:
    """Nothing that is stored has changed without a step of the format; and no step is skipped."""
    newest = kept()[0]
    if newest > version or (newest < version and newest not in released):
        yield f"releases/{newest} is neither released nor the version that this is ({version})"
    if missing := [str(v) for v in released if v not in kept()]:
        yield f"releases/ has nothing of {', '.join(missing)}"
    before, now = formats.written(RELEASES / str(newest)), formats.golden()
    changed = sorted(name for name in now if now[name] != before.get(name))
    if not changed:
        return
    if newest not in released:
        yield f"{', '.join(changed)}: not as in releases/{newest}, which is not released: run `make snapshot`"
    elif newest[:2] == version[:2]:
        yield f"{', '.join(changed)}: not as {newest} has them; a format changes with a minor version only"
    elif now["format"] != before["format"] + 1:
        yield f"{', '.join(changed)}: not as {newest} has them: FORMAT must be {before['format'] + 1}"


def untold_changes(root: Path = ROOT, upstream: str = "origin/main") -> Iterator[str]:
    """Whether what is here and not upstream changes something without a word in CHANGELOG.md. Where there is
    no upstream, or this is it, there is nothing to say."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, text=True, capture_output=True, check=True).stdout

    try:
        base = git("merge-base", "HEAD", upstream).strip()
        changed = set(git("diff", "--name-only", base).split("\n"))
    except (subprocess.CalledProcessError, OSError):
        return
    told = sorted(name for name in changed if name.startswith(TOLD))
    if told and "CHANGELOG.md" not in changed:
        yield f"CHANGELOG.md says nothing of what was changed since {upstream}: {', '.join(told[:5])}"
