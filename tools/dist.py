"""Build what is published into dist/, and try it where nothing else is.

    python tools/dist.py

Wheel and sdist of service and client; each sdist must give the same wheel and the same sdist again, byte for
byte, from another place. Then both wheels go into empty environments: there `fedsvc --version` answers, and a
client that has nothing of the service has `fedsvc dev` deliver an activity.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
PROJECTS = (ROOT, ROOT / "clients/python")
#: seconds for one command
PATIENCE = 300


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> str:
    """What it prints. Exits with its output if it fails."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("FEDSVC_", "PYTHON"))}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=kept | environment,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=PATIENCE,
    )
    if done.returncode:
        sys.exit(f"dist: {' '.join(map(str, command))} failed:\n{done.stdout}")
    return done.stdout


def build(project: Path, target: Path, epoch: str) -> None:
    run(sys.executable, "-m", "hatchling", "build", "-d", target, cwd=project, SOURCE_DATE_EPOCH=epoch)


def epoch() -> str:
    """When the commit was made, so that the same commit gives the same bytes; else as told, else 1980."""
    if told := os.environ.get("SOURCE_DATE_EPOCH"):
        return told
    done = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=ROOT, text=True, capture_output=True)
    return done.stdout.strip() if done.returncode == 0 else "315532800"


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def build_twice() -> None:
    """dist/, and the same from its sdists."""
    shutil.rmtree(DIST, ignore_errors=True)
    when = epoch()
    for project in PROJECTS:
        build(project, DIST, when)
    with tempfile.TemporaryDirectory() as scratch:
        again = Path(scratch, "again")
        for sdist in sorted(DIST.glob("*.tar.gz")):
            with tarfile.open(sdist) as archive:
                archive.extractall(scratch, filter="data")
            build(Path(scratch, sdist.name.removesuffix(".tar.gz")), again, when)
        if digests(DIST) != digests(again):
            sys.exit(f"dist: not the same when built from the sdists:\n{digests(DIST)}\n{digests(again)}")


def environment(folder: Path, *wheels: Path) -> Path:
    """A new one with these and what they need, in the versions that are locked; its Python."""
    run(sys.executable, "-m", "venv", folder)
    python = folder / "bin/python"
    locked = re.findall(
        r"^[\w.-]+==\S+(?: ;[^\\\n]*)?", (ROOT / "requirements/runtime.lock").read_text(), re.M
    )
    constraints = folder / "constraints"
    constraints.write_text("\n".join(locked))
    run(python, "-m", "pip", "install", "--quiet", "--constraint", constraints, *wheels, cwd=folder)
    run(python, "-m", "pip", "check", cwd=folder)
    return python


def wheel(name: str) -> Path:
    (found,) = DIST.glob(f"{name}-*.whl")
    return found


def main() -> None:
    begun = time.monotonic()
    build_twice()
    run(Path(sys.executable).parent / "twine", "check", "--strict", *sorted(DIST.iterdir()))
    for name, digest in digests(DIST).items():
        print(f"{digest}  {name}")
    print(f"built twice, the same, and in order ({time.monotonic() - begun:.0f} s)", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        service = environment(home / "service", wheel("fedsvc"))
        client = environment(home / "client", wheel("fedsvc_client"))
        print(run(service.parent / "fedsvc", "--version", cwd=home).strip())
        script = ROOT / "tools/dist_trial.py"
        clean = {"HOME": scratch, "PATH": os.defpath}
        print(run(client, script, service.parent / "fedsvc", cwd=home, **clean).strip())
    print(f"dist: ok ({time.monotonic() - begun:.0f} s)")


if __name__ == "__main__":
    main()
