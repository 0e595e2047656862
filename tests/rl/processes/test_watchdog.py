"""Drivers that really stall, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from rl.exitcodes import STALLED
from rl.paths import REPOSITORY
from rl.processes.watchdog import Stall, Watchdog, process_table, role_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def stall(logs: Path, *python: str, **environment: str) -> tuple[str, str]:
    """Run a driver that stalls. Return what it printed and the stacks that it wrote."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.rl.processes.stalled_driver", str(logs), *python],
        cwd=REPOSITORY,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == STALLED, done.stderr
    assert "late: no progress for" in done.stderr
    text, stacks = done.stdout.splitlines()
    return text, Path(stacks).read_text()


def test_a_stall_names_who_waits_and_dumps_every_stack(tmp_path: Path) -> None:
    text, stacks = stall(tmp_path)
    assert "run.stall_s=0.5" in text
    assert "Last: step 3: learn. Waiting for: 8 groups." in text
    assert "stuck_in_the_driver" in stacks
    assert "stuck_in_the_worker" in stacks
    assert "worker-0" in stacks.splitlines()[2]


def test_without_py_spy_the_worker_writes_its_own_stack(tmp_path: Path) -> None:
    bare = tmp_path / "bin"
    bare.mkdir()
    (bare / "python").symlink_to(sys.executable)
    paths = os.pathsep.join(filter(None, sys.path))
    _, stacks = stall(tmp_path, str(bare / "python"), PATH=str(bare), PYTHONPATH=paths)
    assert "py-spy is not installed" in stacks
    assert "in stuck_in_the_worker" in stacks


def test_beats_keep_it_quiet_and_silence_reports_once(tmp_path: Path) -> None:
    stalls: list[Stall] = []
    late: list[Stall] = []
    with Watchdog(
        stall_s=1.5, on_stall=stalls.append, on_late=late.append, logs_dir=tmp_path, waiting=lambda: "nobody"
    ) as watchdog:
        for _ in range(20):
            watchdog.beat("a step")
            time.sleep(0.1)
        assert stalls == []
        end = time.monotonic() + 60
        while not stalls and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(0.8)
    assert [stall.last for stall in stalls] == ["a step"] and late == []
    assert stalls[0].stacks is not None and stalls[0].stacks.exists()


def test_a_waiting_callback_that_fails_does_not_swallow_the_report(tmp_path: Path) -> None:
    stalls: list[Stall] = []

    def waiting() -> str:
        raise ConnectionError("the buffer is gone")

    with Watchdog(stall_s=0.0, on_stall=stalls.append, on_late=stalls.append, logs_dir=tmp_path, waiting=waiting):
        end = time.monotonic() + 60
        while not stalls and time.monotonic() < end:
            time.sleep(0.05)
    assert "unknown (ConnectionError: the buffer is gone)" in stalls[0].text


def test_stacks_that_cannot_be_written_do_not_swallow_the_report(tmp_path: Path) -> None:
    stalls: list[Stall] = []
    with Watchdog(
        stall_s=0.0, on_stall=stalls.append, on_late=stalls.append, logs_dir=tmp_path / "gone", waiting=lambda: "nobody"
    ):
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
