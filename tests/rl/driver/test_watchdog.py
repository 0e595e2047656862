"""Drivers that really stall, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from rl.driver.watchdog import STALL_EXIT_CODE, Stall, Watchdog, process_table, role_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
REPOSITORY = Path(__file__).parents[3]

STALLED = """
import os, pathlib, subprocess, sys, threading, time
from rl.driver.watchdog import Watchdog
logs = pathlib.Path(sys.argv[1])
def stuck_in_the_driver():
    threading.Event().wait()
WORKER = (
    "import sys, time; from rollout.actors.process import enter_role; enter_role('worker-0', sys.argv[1]);"
    "\\ndef stuck_in_the_worker(): time.sleep(300)"
    "\\nopen(sys.argv[1] + '/up', 'w').close(); stuck_in_the_worker()"
)
worker = subprocess.Popen([sys.executable, "-c", WORKER, str(logs)])
while not (logs / "up").exists(): time.sleep(0.05)
def on_stall(stall):
    print(stall.text, flush=True)
    print(stall.stacks, flush=True)
    worker.kill()
watchdog = Watchdog(stall_s=0.5, on_stall=on_stall, logs_dir=logs, waiting=lambda: "8 groups", exit_after_s=0.5)
with watchdog:
    watchdog.beat("step 3: learn")
    stuck_in_the_driver()
"""


def _stall(logs: Path, **environment: str) -> tuple[str, str]:
    done = subprocess.run(
        [sys.executable, "-c", STALLED, str(logs)],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)} | environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == STALL_EXIT_CODE, done.stderr
    assert "error: no progress for" in done.stderr and "did not stop within 0.5 s" in done.stderr
    text, stacks = done.stdout.splitlines()
    return text, Path(stacks).read_text()


def test_a_stall_names_who_waits_and_dumps_every_stack(tmp_path: Path) -> None:
    text, stacks = _stall(tmp_path)
    assert "run.stall_s=0.5" in text
    assert "Last: step 3: learn. Waiting for: 8 groups." in text
    assert "stuck_in_the_driver" in stacks
    assert "stuck_in_the_worker" in stacks
    assert "worker-0" in stacks.splitlines()[2]


def test_without_py_spy_the_worker_writes_its_own_stack(tmp_path: Path) -> None:
    bare = tmp_path / "bin"
    bare.mkdir()
    (bare / "python").symlink_to(sys.executable)
    program = "import sys; sys.executable = sys.argv[2]\n" + STALLED
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), str(bare / "python")],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "PATH": str(bare)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == STALL_EXIT_CODE, done.stderr
    stacks = Path(done.stdout.splitlines()[1]).read_text()
    assert "py-spy is not installed" in stacks
    assert "in stuck_in_the_worker" in stacks


def test_beats_keep_it_quiet_and_silence_reports_once(tmp_path: Path) -> None:
    stalls: list[Stall] = []
    with Watchdog(stall_s=1.5, on_stall=stalls.append, logs_dir=tmp_path, waiting=lambda: "nobody") as watchdog:
        for _ in range(20):
            watchdog.beat("a step")
            time.sleep(0.1)
        assert stalls == []
        end = time.monotonic() + 60
        while not stalls and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(0.8)
    assert [stall.last for stall in stalls] == ["a step"]
    assert stalls[0].stacks is not None and stalls[0].stacks.exists()


def test_a_waiting_callback_that_fails_does_not_swallow_the_report(tmp_path: Path) -> None:
    stalls: list[Stall] = []

    def waiting() -> str:
        raise ConnectionError("the buffer is gone")

    with Watchdog(stall_s=0.0, on_stall=stalls.append, logs_dir=tmp_path, waiting=waiting):
        end = time.monotonic() + 60
        while not stalls and time.monotonic() < end:
            time.sleep(0.05)
    assert "unknown (ConnectionError: the buffer is gone)" in stalls[0].text


def test_stacks_that_cannot_be_written_do_not_swallow_the_report(tmp_path: Path) -> None:
    stalls: list[Stall] = []
    with Watchdog(stall_s=0.0, on_stall=stalls.append, logs_dir=tmp_path / "gone", waiting=lambda: "nobody"):
        end = time.monotonic() + 60
        while not stalls and time.monotonic() < end:
            time.sleep(0.05)
    assert "Waiting for: nobody" in stalls[0].text and "not written (FileNotFoundError" in stalls[0].text
    assert stalls[0].stacks is None


def test_the_process_table_names_roles(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(300)"], stderr=(tmp_path / "trainer-1.log").open("w")
    )
    try:
        process = psutil.Process(child.pid)
        assert role_of(process) == "trainer-1"
        assert process_table([process]).splitlines()[1].split()[0] == str(child.pid)
    finally:
        child.kill()
        child.wait()
    assert len(process_table([process]).splitlines()) == 1
