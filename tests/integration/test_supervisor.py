"""Children that crash, hang, do not start and say strange things."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from fedsvc import supervisor as module
from fedsvc.children import Child
from fedsvc.supervisor import Supervisor
from fedsvc.worker import pool
from fedsvc.worker.pool_http import SILENCE, stuck


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_PAUSE", 0.0)


async def python(program: str, status: asyncio.StreamReader | None = None) -> Child:
    """A child that runs `program`, and says what the test feeds into `status`."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE
    )
    return Child("test", process, status or asyncio.StreamReader())


SLEEP = "import time; time.sleep(60)"
ENDS_WELL = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print(flush=True)
time.sleep(60)
"""


async def test_a_child_that_crashes_all_the_time_is_given_up() -> None:
    starts = 0

    async def start() -> Child:
        nonlocal starts
        starts += 1
        return await python("raise SystemExit(3)")

    supervisor = Supervisor(5.0)
    await supervisor.add("test", start)
    async with asyncio.timeout(30):
        await supervisor.wait()
    assert starts == 5
    assert await supervisor.end() == 1


async def test_a_start_that_fails_counts_as_a_crash_and_is_tried_again() -> None:
    starts = 0

    async def start() -> None:
        nonlocal starts
        starts += 1
        raise OSError("no more processes")

    async def ended() -> int:
        return -9

    supervisor = Supervisor(5.0)
    supervisor.keep("test", ended, start)
    async with asyncio.timeout(30):
        await supervisor.wait()
    assert starts == 4  # after each end but the fifth
    assert await supervisor.end() == 1


async def test_a_killed_child_is_started_again_and_stopped_at_the_end() -> None:
    supervisor = Supervisor(5.0)
    first = await supervisor.add("test", lambda: python(ENDS_WELL))
    first.process.kill()
    async with asyncio.timeout(30):
        while (second := supervisor.children["test"]) is first:
            await asyncio.sleep(0.01)
        assert second.process.stdout is not None
        await second.process.stdout.readline()
    assert await supervisor.end() == 0
    assert not second.running


async def test_a_child_that_does_not_end_is_killed_after_the_grace() -> None:
    child = await python(
        "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    )
    assert child.process.stdout is not None
    await child.process.stdout.readline()
    assert await child.stop(0.05) == -9


async def test_a_second_sigint_leaves_a_child_that_goes_on() -> None:
    supervisor = Supervisor(30.0)
    told: list[bool] = []
    supervisor.handle_signals(lambda: told.append(True))
    child = await supervisor.add(
        "test",
        lambda: python(
            "import signal, time\n"
            "for number in (2, 15): signal.signal(number, signal.SIG_IGN)\n"
            "print(flush=True); time.sleep(60)"
        ),
    )
    assert child.process.stdout is not None
    await child.process.stdout.readline()
    os.kill(os.getpid(), signal.SIGINT)
    async with asyncio.timeout(10):
        await supervisor.wait()
        ended = asyncio.create_task(supervisor.end())
        os.kill(os.getpid(), signal.SIGINT)
        assert await ended == 1
    assert told == [True]


async def test_strange_words_of_a_child_are_passed_over() -> None:
    reader = asyncio.StreamReader(limit=1000)
    child = await python(SLEEP, reader)
    reader.feed_data(b"[1]\nno json\n\xff\n" + b"x" * 5000 + b'\n{"ready": true}\n')
    assert await child.wait_ready(asyncio.get_running_loop().time() + 10.0)
    assert await child.stop(5.0) == -15


async def test_waiting_for_a_child_that_ends_ends() -> None:
    child = await python("")
    assert not await child.wait_ready(asyncio.get_running_loop().time() + 10.0)
    assert await child.stop(5.0) == 0


async def test_a_command_that_refuses_its_settings_ends_at_once() -> None:
    environment = {name: os.environ[name] for name in ("PATH",) if name in os.environ}
    child = await Child.start("worker", ("worker-process",), {**environment, "FEDSVC_LEASE": "never"})
    assert not await child.wait_ready(asyncio.get_running_loop().time() + 20.0)
    assert await child.stop(5.0) == 1


async def test_a_worker_is_alive_until_a_process_of_its_neither_speaks_nor_ends_or_a_loop_is_stuck() -> None:
    supervisor = Supervisor(5.0)
    assert stuck(supervisor) == {"worker": "no process"}
    child = await supervisor.add("test", lambda: python(SLEEP))
    try:
        assert stuck(supervisor) == {}
        child.status = {"ready": False, "problems": {"settle": "Redis is away"}, "stuck": []}
        child.told = time.monotonic()
        assert stuck(supervisor) == {}
        child.status = {"ready": False, "problems": {}, "stuck": ["settle"]}
        assert stuck(supervisor) == {"test": "does not come round any more: settle"}
        child.status, child.told = {"ready": True}, time.monotonic() - SILENCE - 1
        child.started = child.told
        assert "no word" in stuck(supervisor)["test"]
        supervisor.stop()
        assert stuck(supervisor) == {}
    finally:
        await supervisor.end()


TELLS = """
from fedsvc.worker.metrics import HELPED, PARTITIONS, WORKERS
PARTITIONS.set(16); WORKERS.set(1); HELPED.inc(3)
raise SystemExit(3)
"""


async def test_what_a_process_told_of_itself_goes_with_it_and_what_it_counted_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    started: list[Child] = []

    async def start(name: str, _: object, environment: dict[str, str]) -> Child:
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", TELLS, env=environment)
        started.append(Child(name, process, asyncio.StreamReader()))
        return started[-1]

    def told() -> str:
        registry = CollectorRegistry()
        MultiProcessCollector(registry, str(tmp_path))  # type: ignore[no-untyped-call]
        return generate_latest(registry).decode()

    monkeypatch.setattr(Child, "start", start)
    supervisor = Supervisor(5.0)
    supervisor.children["worker-0"] = await pool._start(supervisor, "worker-0", environment)
    await started[0].process.wait()
    assert f'fedsvc_worker_partitions{{pid="{started[0].process.pid}"}} 16.0' in told()
    await pool._start(supervisor, "worker-0", environment)
    await started[1].process.wait()
    assert f'pid="{started[0].process.pid}"' not in told()
    assert f'fedsvc_workers_seen{{pid="{started[1].process.pid}"}} 1.0' in told()
    assert "fedsvc_helped_deliveries_total 6.0" in told()
    for child in started:
        await child.stop(5.0)
