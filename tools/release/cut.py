"""Make a release, or the snapshot of one that is to come."""

import datetime
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tools.release import contract, formats, versions
from tools.release.checks import RELEASES, kept
from tools.release.versions import ROOT, Version

_AFTER = """\
{version} is made. Look at `git diff`, then:

    git commit -am "Release {version}" && git tag -s v{version} -m "fedsvc {version}"
    make dist                     # dist/ has what is published: twine upload dist/*
    git push origin main v{version}

The next change sets the version that comes: make next VERSION=...
"""


def snapshot() -> str:
    """Write releases/VERSION/ of the first release that is to come: contract, formats, data, and the wheel
    that later versions are tried with. Raises ValueError once there is a release: what comes is held against
    that."""
    version = versions.current()
    if done := versions.released((ROOT / "CHANGELOG.md").read_text()):
        raise ValueError(f"{done[0]} is released, and what comes is held against it")
    _write(version)
    return f"releases/{version} is written"


def set_next(text: str) -> str:
    """Write the version that comes wherever one stands. Raises ValueError."""
    version = Version.parse(text)
    done = versions.released((ROOT / "CHANGELOG.md").read_text())
    if done and version <= done[0]:
        raise ValueError(f"{version} is not after {done[0]}, which is released")
    versions.bump(version)
    subprocess.run([sys.executable, "-m", "tools.docs"], cwd=ROOT, check=True)
    return f"{version} is what comes"


def cut(text: str, day: datetime.date) -> str:
    """Make this checkout release `text`; says what remains to be done. Raises ValueError."""
    version = Version.parse(text)
    changelog = ROOT / "CHANGELOG.md"
    told = versions.with_release(changelog.read_text(), version, day)
    versions.bump(version)
    subprocess.run([sys.executable, "-m", "tools.docs"], cwd=ROOT, check=True)  # some name the version
    unreleased = [v for v in kept() if v not in versions.released(changelog.read_text())]
    _write(version)
    changelog.write_text(told)
    for old in unreleased:
        if old != version:
            shutil.rmtree(RELEASES / str(old))
    return _AFTER.format(version=version)


def _write(version: Version) -> None:
    target = RELEASES / str(version)
    if target.exists():
        shutil.rmtree(target)
    target.mkdir(parents=True)
    contract.image("proto", target / contract.IMAGE)
    formats.write(target)
    _run("-m", "upgrade", str(target), cwd=ROOT / "tests")
    _run("-m", "hatchling", "build", "-t", "wheel", "-d", str(target))
    for older in kept():  # only the newest is run beside what comes
        if older != version:
            for wheel in (RELEASES / str(older)).glob("*.whl"):
                wheel.unlink()


def _run(*arguments: str, cwd: Path = ROOT) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FEDSVC_")}
    subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, check=True, timeout=300, stdout=sys.stderr
    )
