"""README.md and docs/quickstart.md, done as a stranger would: what they have typed is run, word for word but
for ports, and for an inbox that is here."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fedsvc_client import DeliveryState, FedsvcClient
from servers.processes import Fedsvc
from servers.topologies import until
from servers.unused_ports import unused_port

ROOT = Path(__file__).parents[2]
README, QUICKSTART = ((ROOT / name).read_text() for name in ("README.md", "docs/quickstart.md"))
AWAY = "https://lemmy.example/inbox"


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.DOTALL | re.MULTILINE)


def block(page: str, language: str, word: str) -> str:
    """The one that has `word`."""
    (found,) = (text for text in blocks(page, language) if word in text)
    return found


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Where the pages are followed: a directory that has `.venv`, as a checkout."""
    (tmp_path / ".venv").symlink_to(sys.prefix)
    return tmp_path


@contextmanager
def inbox(home: Path, port: int) -> Iterator[Path]:
    """That of the page. Yields the file with what it shows."""
    script = block(QUICKSTART, "sh", "HTTPServer").replace("8000", str(port))
    shown = home / "inbox"
    with shown.open("w") as output:
        process = subprocess.Popen(["sh", "-c", f"exec {script}"], cwd=home, stdout=output, stderr=output)
    try:
        yield shown
    finally:
        process.kill()
        process.wait()


def test_what_the_first_pages_have_typed_delivers(home: Path, rsa_pem: str) -> None:
    port = unused_port()
    here = f"http://127.0.0.1:{port}/inbox"
    (start,) = re.findall(r"^((?:FEDSVC_\w+=\S+ )+).venv/bin/fedsvc dev$", QUICKSTART, re.MULTILINE)
    settings = dict(setting.split("=", 1) for setting in start.split())
    listen = ("--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0")
    with Fedsvc(home, "dev", *listen, settings=settings) as dev, inbox(home, port) as shown:
        target, _ = dev.ready()
        environment = {k: v for k, v in os.environ.items() if not k.startswith("FEDSVC_")}
        environment |= {"FEDSVC_TARGET": target, "COLUMNS": "200"}

        def typed(script: str) -> str:
            done = subprocess.run(
                ["sh", "-e", "-c", script],
                cwd=home,
                env=environment,
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert done.returncode == 0, done.stderr
            return done.stdout

        assert block(QUICKSTART, "sh", "openssl") in README
        if shutil.which("openssl"):  # which nothing else of ours needs
            typed(block(QUICKSTART, "sh", "openssl"))
        else:
            (home / "ada.pem").write_text(rsa_pem)
        (home / "like.json").write_text(block(QUICKSTART, "json", "Like"))
        delivery_id = typed(
            block(QUICKSTART, "sh", "127.0.0.1:8000/inbox").replace("8000", str(port))
        ).strip()
        with FedsvcClient(target) as client:
            until(
                "it is delivered", lambda: client.get_delivery(delivery_id).state is DeliveryState.DELIVERED
            )
        assert (home / "like.json").read_text() in shown.read_text()
        again = typed(block(QUICKSTART, "sh", AWAY).replace(AWAY, here))
        assert again == f"{delivery_id} (it was accepted before)\n"

        asked = block(QUICKSTART, "sh", "deliveries list")
        told = typed("\n".join(line for line in asked.splitlines() if "doctor" not in line))  # it asks DNS
        assert delivery_id in told
        assert "1 delivered" in told

        program = (
            block(README, "python", "FedsvcClient").replace("127.0.0.1:50051", target).replace(AWAY, here)
        )
        (home / "first.py").write_text(program)
        state = typed(".venv/bin/python first.py").strip()
        assert f"`{state}`" in README
