"""What the benchmarks measure with: accounting of CPU, the inboxes, the caller, HTTP clients."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from benchmarks import accounting, certificates, quota
from benchmarks.caller import HOLE, call, messages
from benchmarks.conditions import Conditions
from benchmarks.http_clients.frames_client import literal
from benchmarks.load import BODY_BYTES, address
from benchmarks.machine import ROOT
from benchmarks.processes import Late, Sink, process, sink
from benchmarks.scenarios import http_clients

BURNS = "import time\nwhile time.process_time() < 0.3: pass\n"
CHECK = "/grpc.health.v1.Health/Check"


def test_cpu_of_children_counts_while_they_live_and_when_they_have_ended() -> None:
    parent = (
        "import subprocess, sys\n"
        f"subprocess.run([sys.executable, '-c', {BURNS!r}], check=True)\n"
        f"child = subprocess.Popen([sys.executable, '-c', {BURNS + 'print(flush=True); input()'!r}],"
        " stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
        "child.stdout.readline(); print(flush=True); input(); child.communicate(b'\\n')\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert len(accounting.tree(process.pid)) == 2
        # 0.3 each of the child that has ended, in hundredths, and of the one that lives
        assert accounting.tree_cpu_seconds(process.pid) > 0.55
        assert accounting.cpu_seconds(process.pid) < accounting.tree_cpu_seconds(process.pid) - 0.55
        process.communicate(b"\n")


def test_cpu_of_a_process_that_is_not_there_is_an_error() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    with pytest.raises(OSError, match="Invalid argument"):
        accounting.cpu_seconds(process.pid)


def test_a_process_held_to_a_share_of_a_core_gets_no_more_and_leaves_no_trace() -> None:
    try:
        with quota.limited(0.1) as prefix:
            begun = time.monotonic()
            subprocess.run([*prefix, sys.executable, "-c", BURNS], check=True)
            # 0.3 s of CPU, 10 ms in each 100; what a timer's turn gives too much is in the margin
            assert time.monotonic() - begun > 1.5
            group = Path(prefix[-1]).parent
            assert group.is_dir()
    except quota.Unlimited as why:
        pytest.skip(f"the kernel holds nobody to a share of a core here: {why}")
    assert not group.exists()


def test_where_no_group_can_be_made_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_V1", "_V2"):
        monkeypatch.setattr(quota, name, (tmp_path, "no/such", "{quota}"))
    with pytest.raises(quota.Unlimited, match="no/such: No such file"), quota.limited(0.1):
        pass
    assert not list(tmp_path.iterdir())


def post(inboxes: Sink, path: str, times: int = 1) -> socket.socket:
    client = socket.create_connection(("127.80.0.9", inboxes.ports[0]), timeout=10)
    request = f"POST {path} HTTP/1.1\r\nHost: a\r\nX: 1\r\nContent-Length: 3\r\n\r\nabc"
    client.sendall(request.encode() * times)
    return client


def test_inboxes_count_and_tell_when_what_is_expected_has_come() -> None:
    with sink() as inboxes:
        inboxes.expect(2, 5)
        begun = time.monotonic()
        with post(inboxes, "/inbox", 5):
            first, last = inboxes.reached(), inboxes.reached()
            assert begun <= first <= last <= time.monotonic()
            told = inboxes.told()
        assert told["count"] == 5
        assert told["connections"] == 1
        assert told["length"] == len(
            "POST /inbox HTTP/1.1\r\nHost: a\r\nX: 1\r\nContent-Length: 3\r\n\r\nabc"
        )
        assert told["head"].startswith("POST /inbox HTTP/1.1\r\nHost: a")


def test_inboxes_hold_answers_until_they_are_released_and_note_times() -> None:
    with sink() as inboxes:
        inboxes.expect(2)
        with post(inboxes, "/hold/inbox") as held, post(inboxes, "/t/7"):
            inboxes.reached()
            held.settimeout(0.05)
            with pytest.raises(TimeoutError):
                held.recv(100)
            inboxes.release()
            held.settimeout(10)
            assert held.recv(100).startswith(b"HTTP/1.1 202")
        assert list(inboxes.times()) == ["/t/7"]


def test_waiting_for_inboxes_ends_with_the_sender() -> None:
    with sink() as inboxes, subprocess.Popen([sys.executable, "-c", ""]) as sender:
        inboxes.expect(1)
        with pytest.raises(Late):
            inboxes.reached(sender.pid, patience=60)


def test_messages_are_numbered_where_they_have_a_hole() -> None:
    assert list(messages(b"a" + HOLE + b"b", iter(range(7, 9)))) == [b"a000000007b", b"a000000008b"]
    assert list(messages(b"same", iter(range(2)))) == [b"same", b"same"]


async def test_calls_are_answered_one_for_one_and_a_call_that_fails_fails_all() -> None:
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        known = health_pb2.HealthCheckRequest().SerializeToString()
        async with asyncio.timeout(30):
            assert await call(f"127.0.0.1:{port}", 2, 16, CHECK, messages(known, iter(range(500)))) == 500
            unknown = health_pb2.HealthCheckRequest(service="unknown").SerializeToString()
            with pytest.raises(RuntimeError, match="a call failed"):
                await call(f"127.0.0.1:{port}", 1, 4, CHECK, messages(unknown, iter(range(8))))
    finally:
        await server.stop(None)


@pytest.mark.parametrize(("client", "connections"), [("own", 128), ("aiohttp", 128), ("frames", 2)])
def test_inboxes_with_tls_answer_every_post_by_http_1_and_http_2(
    client: str, connections: int, tmp_path: Path
) -> None:
    authority, [certificate] = certificates.make(tmp_path, [address(0), address(1)], 2)
    inboxes = [sys.executable, "-m", "benchmarks.http_clients.inboxes", str(certificate)]
    with process(inboxes, os.environ) as started:
        seen = Sink(started)
        done = subprocess.run(
            [
                *(sys.executable, "-m", "benchmarks.http_clients", client, "--port", str(seen.ports[0])),
                *("--hosts", "2", "--posts", "700", "--ca", str(authority)),
            ],
            cwd=ROOT, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        told = seen.told()
        seen.close()
    assert told["count"] == json.loads(done.stdout)["made"]
    assert told["connections"] == connections
    assert told["length"] > BODY_BYTES


def test_headers_are_written_as_hpack_has_them_without_an_index() -> None:
    assert literal("date", "x" * 126) == b"\0\x04date\x7e" + b"x" * 126
    assert literal("date", "x" * 127) == b"\0\x04date\x7f\x00" + b"x" * 127
    assert literal("date", "x" * 300) == b"\0\x04date\x7f\xad\x01" + b"x" * 300
    with pytest.raises(ValueError, match="127 bytes"):
        literal("n" * 127, "")


def test_clients_that_are_not_installed_are_left_out_and_told_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(http_clients, "PYTHON", tmp_path / "python")
    names, notes = http_clients.present(Conditions(1))
    assert set(names) == {"own", "aiohttp", "frames"}
    assert "h2, niquests: left out" in notes[0]
    monkeypatch.setattr(http_clients, "PYTHON", Path(sys.executable))  # it has none of them
    names, notes = http_clients.present(Conditions(1))
    assert set(names) == {"own", "aiohttp", "frames"}
    assert "niquests is left out" in notes[0]
