"""fedsvc behind tokens and TLS, with keys that it keeps, as an operator sets it up with the command line."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from apsig.draft.verify import Verifier
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from servers.certificates import authority
from servers.inbox import InboxServer
from servers.processes import Fedsvc, run

from fedsvc.domain.keys import load_private_key
from fedsvc.v1 import operations_service_pb2 as operations_pb
from fedsvc.v1.operations_service_pb2_grpc import OperationsServiceStub

KEY_ID = "https://me.example/u/ada#main-key"
#: no worker has seen it before it is replaced: what they know of a key is good for some seconds
BOB = "https://me.example/u/bob#main-key"
AUTHORITY = authority("of an operator")


def told(settings: dict[str, str], *arguments: str, given: str | None = None) -> Any:
    done = run(settings, *arguments, "--json", given=given)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def new_pem() -> str:
    key = rsa.generate_private_key(65537, 2048)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


@pytest.fixture(scope="module")
def tokens() -> dict[str, Any]:
    return {
        "piefed": told(
            {}, "tokens", "new", "piefed", "--scope", "deliver", "--scope", "keys", "--origin", "me.example"
        ),
        "admin": told({}, "tokens", "new", "admin", "--scope", "operate", "--origin", "*"),
    }


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory, tokens: dict[str, Any]) -> Iterator[Fedsvc]:
    directory = tmp_path_factory.mktemp("guarded")
    certificate = AUTHORITY.certify("127.0.0.1", "localhost")
    (directory / "tokens").write_text("\n".join(made["entry"] for made in tokens.values()))
    settings = {
        "FEDSVC_ALLOW_HTTP": "true",
        "FEDSVC_ALLOWED_CIDRS": "127.0.0.0/8",
        "FEDSVC_TOKENS_FILE": str(directory / "tokens"),
        "FEDSVC_TLS_CERT": str(certificate),
        "FEDSVC_TLS_KEY": str(certificate),
    }
    listen = ("--listen", "0.0.0.0:0", "--http-listen", "127.0.0.1:0")
    with Fedsvc(directory, "dev", *listen, settings=settings) as fedsvc:
        fedsvc.ready()
        yield fedsvc


@pytest.fixture
def piefed(dev: Fedsvc, tokens: dict[str, Any], tmp_path: Path) -> dict[str, str]:
    """Settings of the command line."""
    (tmp_path / "token").write_text(tokens["piefed"]["token"] + "\n")
    return {
        "FEDSVC_TARGET": dev.ready()[0].replace("0.0.0.0", "127.0.0.1"),
        "FEDSVC_TOKEN_FILE": str(tmp_path / "token"),
        "FEDSVC_TLS_CA": str(AUTHORITY.file),
    }


@pytest.fixture
async def operations(piefed: dict[str, str]) -> Any:
    credentials = grpc.ssl_channel_credentials(AUTHORITY.file.read_bytes())
    async with grpc.aio.secure_channel(piefed["FEDSVC_TARGET"], credentials) as channel:
        yield OperationsServiceStub(channel)


def activity(number: int) -> str:
    actor = "https://me.example/u/ada"
    sent = {"id": f"https://me.example/a/{number}", "type": "Like", "actor": actor}
    return json.dumps(sent | {"object": "https://other.example/1"})


def signed_by(inbox: InboxServer, number: int, pem: str) -> bool:
    """Whether what the inbox has got is signed with this key, as a library that is not ours sees it."""
    request = inbox.requests[number]
    (body,) = {body for _, body in inbox.received if f"/a/{number}".encode() in body}
    public = load_private_key(pem).public_pem
    url = f"http://{request.host}{request.raw_path}"
    return Verifier(public, "POST", url, dict(request.headers), body).verify() is not None


async def test_a_registered_key_signs_and_its_successor_signs_what_waited(
    piefed: dict[str, str], operations: Any, tokens: dict[str, Any], tmp_path: Path
) -> None:
    async def cli(*arguments: str, given: str | None = None) -> Any:
        return await asyncio.to_thread(told, piefed, *arguments, given=given)

    admin = (("authorization", f"Bearer {tokens['admin']['token']}"),)
    first, second = new_pem(), new_pem()
    (tmp_path / "first.pem").write_text(first)
    put = await cli("keys", "put", KEY_ID, "--key-file", str(tmp_path / "first.pem"))
    assert put["fingerprint"] == load_private_key(first).fingerprint
    assert [key["key_id"] for key in (await cli("keys", "list"))["keys"]] == [KEY_ID]
    async with InboxServer() as inbox:
        send = ("enqueue", "-", "--inbox", inbox.url(), "--key-id", KEY_ID)
        await cli(*send, given=activity(0))
        await inbox.wait_for(1)
        assert (signed_by(inbox, 0, first), signed_by(inbox, 0, second)) == (True, False)
        await operations.PauseHost(operations_pb.PauseHostRequest(host="127.0.0.1"), metadata=admin)
        await cli("keys", "put", BOB, "--key-file", str(tmp_path / "first.pem"))
        send = ("enqueue", "-", "--inbox", inbox.url(), "--key-id", BOB)
        await cli(*send, given=activity(1))
        refused = await asyncio.to_thread(run, piefed, "keys", "delete", BOB)
        assert refused.returncode == 1
        assert "1 activities need key" in refused.stderr
        await cli("keys", "put", BOB, "--rotate", "--key-file", "-", given=second)
        deleted = await cli("keys", "delete", BOB, "--when-unused")
        assert deleted == {"key_id": BOB, "deferred": True}
        late = await asyncio.to_thread(run, piefed, *send, given=activity(2))
        assert late.returncode == 1
        assert "signing_key" in late.stderr, "nothing new is signed with a key that leaves"
        await operations.ResumeHost(operations_pb.ResumeHostRequest(host="127.0.0.1"), metadata=admin)
        await inbox.wait_for(2)
        assert (signed_by(inbox, 1, first), signed_by(inbox, 1, second)) == (False, True)


async def test_what_the_command_line_must_not_do_is_said_in_a_line(
    piefed: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "other.pem").write_text(new_pem())
    stranger = authority("of somebody else").file
    other = ("keys", "put", "https://other.example/u/x#k", "--key-file", str(tmp_path / "other.pem"))
    cases: list[tuple[dict[str, str], tuple[str, ...], str]] = [
        ({}, other, "piefed may not sign for other.example"),
        ({"FEDSVC_TOKEN_FILE": ""}, ("keys", "list"), "set FEDSVC_TOKEN or FEDSVC_TOKEN_FILE"),
        (
            {"FEDSVC_TOKEN_FILE": "", "FEDSVC_TOKEN": "wrong"},
            ("keys", "list"),
            "fedsvc: FEDSVC_TOKEN: the token is not known",
        ),
        ({"FEDSVC_TLS_CA": ""}, ("keys", "list"), "if it speaks TLS, set FEDSVC_TLS_CA"),
        ({"FEDSVC_TLS_CA": str(stranger)}, ("keys", "list"), "not one that FEDSVC_TLS_CA vouches for"),
        ({}, ("dead", "list"), "ListDeadLetters needs the scope operate"),
        ({"FEDSVC_TOKEN_FILE": "/nonexistent"}, ("keys", "list"), "FEDSVC_TOKEN_FILE"),
        ({}, ("keys", "put", KEY_ID, "--key-file", str(AUTHORITY.file)), "private_key_pem"),
    ]
    # at once: some try for seconds before they give up
    ended = await asyncio.gather(
        *(asyncio.to_thread(run, piefed | settings, *arguments) for settings, arguments, _ in cases)
    )
    for done, (_, arguments, words) in zip(ended, cases, strict=True):
        assert done.returncode == 1, arguments
        assert words in done.stderr
        assert "Traceback" not in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
