"""The client as its wheel brings it, without anything of the service: with its three dependencies and no
more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from servers.scripted import scripted

CLIENT = Path(__file__).parents[2] / "clients/python"
DEPENDENCIES = ("grpcio", "protobuf", "googleapis-common-protos", "typing-extensions")
PROGRAM = """
import json, sys
from fedsvc_client import FedsvcClient, pyfedi
import fedsvc_client.outcomes
sent = pyfedi.send_post_request("https://a.example/inbox", {"id": "https://me.example/1"}, "pem", "k")
try:
    import fedsvc_client.outbox
    hint = ""
except ImportError as error:
    hint = str(error)
loaded = {name.split(".")[0] for name in sys.modules}
foreign = sorted({"fedsvc", "sqlalchemy", "flask", "celery", "asyncpg", "click"} & loaded)
print(json.dumps({"sent": sent, "hint": hint, "foreign": foreign, "home": fedsvc_client.__file__}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
    ]
    done = subprocess.run(
        [*command, "--disable-pip-version-check", "-w", str(target), str(CLIENT)],
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (found,) = target.glob("*.whl")
    return found


def test_the_wheel_is_small_typed_and_has_nothing_else_in_it(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
    assert "fedsvc_client/py.typed" in names
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"fedsvc_client"}
    assert wheel.stat().st_size < 200_000


def test_it_calls_a_server_from_an_empty_home_with_its_dependencies_only(wheel: Path, tmp_path: Path) -> None:
    home, packages = tmp_path / "home", tmp_path / "packages"
    home.mkdir()
    packages.mkdir()
    with zipfile.ZipFile(wheel) as file:
        file.extractall(packages)
    for name in DEPENDENCIES:
        for part in metadata.files(name) or []:
            source, place = Path(str(part.locate())), packages / str(part)
            if not part.parts[0].startswith("..") and source.is_file():
                place.parent.mkdir(parents=True, exist_ok=True)
                place.symlink_to(source)
    with scripted() as script:
        done = subprocess.run(
            [sys.executable, "-S", "-W", "error", "-c", PROGRAM],
            env={
                "HOME": str(home),
                "PATH": os.defpath,
                "PYTHONPATH": str(packages),
                "FEDSVC_TARGET": script.target,
            },
            cwd=home,
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["sent"], told["foreign"]) == (True, [])
    assert told["home"].startswith(str(packages))
    assert "pip install 'fedsvc-client[outbox]'" in told["hint"]
    assert len(script.accepted) == 1
    assert list(home.iterdir()) == []
