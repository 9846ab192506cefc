"""Build the container image with docker, podman or buildah, whichever is there.

python tools/image.py [--base IMAGE] [--tag TAG]

Without --base it is the one that the Dockerfile pins; where no registry has it, or with `--base local`, one
is made from Debian's packages by mmdebstrap, much as Debian's own images are. Writes build/image.json: what
was built, with what, from what, and how long it took in seconds.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from fedsvc import __version__

ROOT = Path(__file__).resolve().parent.parent
FACTS = ROOT / "build/image.json"
ENGINES = ("docker", "podman", "buildah")
LOCAL_BASE = "localhost/fedsvc-base:trixie"
#: seconds for a pull of the base, and for everything else
PULL, BUILD = 120, 900
#: what a base is made without, as in Debian's slim images
LEFT_OUT = ("doc", "man", "info", "locale", "lintian")


def engine() -> str:
    for name in ENGINES:
        # A docker command without a daemon is of no use.
        if shutil.which(name) and not run([name, "info"], quiet=True):
            if name == "buildah" and not shutil.which("runc"):
                sys.exit("buildah only builds: runc runs the image (on Debian: apt-get install runc)")
            return name
    sys.exit(f"none of {', '.join(ENGINES)} is here (on Debian: apt-get install buildah runc mmdebstrap)")


def run(command: list[str], *, quiet: bool = False, patience: float = BUILD) -> int:
    """The exit code."""
    output = subprocess.DEVNULL if quiet else None
    try:
        return subprocess.run(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output, timeout=patience
        ).returncode
    except subprocess.TimeoutExpired:
        return 124


def pinned_base() -> str:
    found = re.search(r"^ARG BASE=(\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def base(name: str, asked: str) -> str:
    """The base to build on; made if need be."""
    if asked and asked != "local":
        return asked
    if not asked and not run([name, "pull", "-q", pinned_base()], quiet=True, patience=PULL):
        return pinned_base()
    if run([name, "inspect", *(("--type", "image") if name == "buildah" else ()), LOCAL_BASE], quiet=True):
        make_base(name)
    return LOCAL_BASE


def make_base(name: str) -> None:
    if not shutil.which("mmdebstrap"):
        sys.exit(f"{pinned_base()} cannot be pulled, and mmdebstrap is not here to make a base")
    print(f"making {LOCAL_BASE} from Debian's packages", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        archive = f"{scratch}/base.tar"
        slim = [f"--dpkgopt=path-exclude=/usr/share/{what}/*" for what in LEFT_OUT]
        slim.append("--dpkgopt=path-include=/usr/share/doc/*/copyright")
        if run(["mmdebstrap", "--quiet", "--variant=minbase", *slim, "trixie", archive]):
            sys.exit("the base cannot be made")
        if name != "buildah":
            if run([name, "import", archive, LOCAL_BASE]):
                sys.exit("the base cannot be imported")
            return
        Path(scratch, "Dockerfile").write_text("FROM scratch\nADD base.tar /\n")
        if run(["buildah", "build", "--quiet", "--isolation", "chroot", "-t", LOCAL_BASE, scratch]):
            sys.exit("the base cannot be imported")


def authorities() -> list[str]:
    """This machine's certificate authorities, where it says that it has its own."""
    for variable in ("PIP_CERT", "SSL_CERT_FILE"):
        if Path(os.environ.get(variable) or "/nonexistent").is_file():
            return ["--secret", f"id=ca,src={os.environ[variable]}"]
    return []


def build(name: str, on: str, tag: str) -> None:
    revision = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    facts = {
        "BASE": on,
        "VERSION": __version__,
        "REVISION": revision or "unknown",
        "CREATED": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    command = [name, "build", *authorities(), "-t", tag]
    if name == "buildah":
        # needs no more rights than chroot, and keeps what HEALTHCHECK says
        command += ["--isolation", "chroot", "--format", "docker"]
    elif name == "podman":
        command += ["--format", "docker"]
    for argument, value in facts.items():
        command += ["--build-arg", f"{argument}={value}"]
    if run([*command, "."]):
        sys.exit("the image cannot be built")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="")
    parser.add_argument("--tag", default=f"localhost/fedsvc:{__version__}")
    given = parser.parse_args()
    name = engine()
    begun = time.monotonic()
    on = base(name, given.base)
    based = time.monotonic()
    build(name, on, given.tag)
    FACTS.parent.mkdir(exist_ok=True)
    facts = {
        "image": given.tag,
        "engine": name,
        "base": on,
        "base_seconds": round(based - begun, 1),
        "build_seconds": round(time.monotonic() - based, 1),
    }
    FACTS.write_text(json.dumps(facts, indent=1) + "\n")
    print(f"built {given.tag} with {name} on {on} in {time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
