"""Where the version stands, and what CHANGELOG.md says of it."""

import datetime
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
#: file -> what stands around the version in it, once
PLACES: Final = {
    "pyproject.toml": r'(?m)^(version = ")([^"]+)(")$',
    "clients/python/pyproject.toml": r'(?m)^(version = ")([^"]+)(")$',
    "fedsvc/__init__.py": r'(?m)^(__version__ = ")([^"]+)(")$',
    "clients/python/src/fedsvc_client/__init__.py": r'(?m)^(__version__ = ")([^"]+)(")$',
    "deploy/helm/fedsvc/Chart.yaml": r'(?m)^(appVersion: "?)([^"\n]+)("?)$',
}
KINDS: Final = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")
_RELEASED = re.compile(r"(\d+\.\d+\.\d+) - (\d{4}-\d{2}-\d{2})")


class Version(NamedTuple):
    major: int
    minor: int
    patch: int

    @classmethod
    def parse(cls, text: str) -> "Version":
        """Raises ValueError if `text` is not X.Y.Z."""
        if not re.fullmatch(r"(0|[1-9]\d*)(\.(0|[1-9]\d*)){2}", text):
            raise ValueError(f"{text} is no version: expected X.Y.Z")
        return cls(*map(int, text.split(".")))

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"


def found(root: Path = ROOT) -> dict[str, str]:
    """File -> version in it, of those files that there are. Raises ValueError if one has none."""
    versions = {}
    for name, pattern in PLACES.items():
        if (root / name).is_file():
            match = re.findall(pattern, (root / name).read_text())
            if len(match) != 1:
                raise ValueError(f"{name} has {len(match)} versions, not one")
            versions[name] = match[0][1]
    return versions


def current(root: Path = ROOT) -> Version:
    """Raises ValueError if the files disagree."""
    versions = found(root)
    if len({*versions.values()}) != 1:
        raise ValueError(f"versions differ: {versions}")
    return Version.parse(versions["pyproject.toml"])


def bump(version: Version, root: Path = ROOT) -> None:
    """Write it wherever a version stands."""
    for name in found(root):
        path = root / name
        path.write_text(re.sub(PLACES[name], rf"\g<1>{version}\g<3>", path.read_text()))


def sections(text: str) -> list[tuple[str, str]]:
    """Headings of a changelog with what stands below each, newest first."""
    parts = re.split(r"(?m)^## (.+)$", text)[1:]
    return [(heading.strip(), body.strip()) for heading, body in zip(parts[::2], parts[1::2], strict=True)]


def released(text: str) -> list[Version]:
    """Versions that a changelog has as released, newest first."""
    return [Version.parse(match[1]) for head, _ in sections(text) if (match := _RELEASED.fullmatch(head))]


def changelog_problems(text: str) -> Iterator[str]:
    """What in it is not as Keep a Changelog has it."""
    heads = [heading for heading, _ in sections(text)]
    if heads[:1] != ["Unreleased"]:
        yield "CHANGELOG.md does not begin with ## Unreleased"
    for heading, body in sections(text):
        match = _RELEASED.fullmatch(heading)
        if heading != "Unreleased":
            if match is None:
                yield f"CHANGELOG.md: ## {heading} is not X.Y.Z - YYYY-MM-DD"
                continue
            try:
                datetime.date.fromisoformat(match[2])
            except ValueError:
                yield f"CHANGELOG.md: {match[2]} is no date"
            if not body:
                yield f"CHANGELOG.md: ## {heading} is empty"
        for kind in re.findall(r"(?m)^### (.+)$", body):
            if kind not in KINDS:
                yield f"CHANGELOG.md: ### {kind} is none of {', '.join(KINDS)}"
    for newer, older in pairwise(released(text)):
        if newer <= older:
            yield f"CHANGELOG.md: {newer} stands above {older}"


def with_release(text: str, version: Version, day: datetime.date) -> str:
    """The changelog with what was unreleased as that release. Raises ValueError if that cannot be."""
    done = released(text)
    if done and version <= done[0]:
        raise ValueError(f"{version} is not after {done[0]}, which is released")
    if not dict(sections(text)).get("Unreleased"):
        raise ValueError("nothing is unreleased: CHANGELOG.md says so")
    return text.replace("## Unreleased\n", f"## Unreleased\n\n## {version} - {day.isoformat()}\n", 1)
