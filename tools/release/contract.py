"""The contract of each release as an image of buf, and whether the present one keeps it."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tools.release.versions import ROOT

IMAGE = "contract.binpb"
BUF = Path(sys.executable).parent / "buf"


def image(source: str, target: Path, root: Path = ROOT) -> None:
    """Write the contract in `source` (as buf takes it, seen from `root`). Raises CalledProcessError."""
    command = [str(BUF), "build", source, "--exclude-source-info", "-o", str(target)]
    subprocess.run(command, cwd=root, check=True, capture_output=True, timeout=120)


def breaking(kept: Path, proto: Path = ROOT / "proto") -> Iterator[str]:
    """What the contract in `proto` takes away or changes that `kept` has."""
    done = subprocess.run(
        [BUF, "breaking", str(proto), "--against", str(kept)],
        cwd=ROOT,
        text=True,
        capture_output=True,
        timeout=120,
    )
    if done.returncode:
        for line in (done.stdout + done.stderr).splitlines():
            yield f"breaks the contract of {kept.parent.name}: {line}"


def tags(root: Path = ROOT) -> list[str]:
    """Releases that this clone knows by their tags; none if it is no clone."""
    done = subprocess.run(["git", "tag", "--list", "v*.*.*"], cwd=root, text=True, capture_output=True)
    return done.stdout.split() if done.returncode == 0 else []


def differs_from_tag(kept: Path, tag: str, root: Path = ROOT) -> Iterator[str]:
    """Whether a kept contract is another than the one at the tag."""
    with tempfile.TemporaryDirectory() as scratch:
        tagged = Path(scratch, IMAGE)
        try:
            image(f".git#tag={tag},subdir=proto", tagged, root)
        except subprocess.CalledProcessError as error:
            yield f"the contract at {tag} cannot be read: {error.stderr.decode().strip()}"
            return
        if tagged.read_bytes() != kept.read_bytes():
            yield f"{kept.relative_to(root)} is not the contract at the tag {tag}"
