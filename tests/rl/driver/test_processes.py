"""Real process trees: double-forked daemons, new sessions, processes that ignore SIGTERM, kill -9 of either parent."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from rl.driver.processes import (
    RUN_ID_VARIABLE,
    SHARED_MEMORY,
    kill_run,
    new_run_id,
    processes_of_run,
    resource_prefix,
    shared_memory_of,
    sweep_files,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
REPOSITORY = Path(__file__).parents[3]

TREE = """
import os, signal, subprocess, sys, time, pathlib
def report(pid):
    with open(os.environ["PIDS"], "a") as file:
        file.write(f"{pid}\\n")
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.signal(signal.SIGINT, " \\
    "signal.SIG_IGN); print('up', flush=True); time.sleep(300)"
def stubborn(**options):
    child = subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE, **options)
    child.stdout.readline()
    report(child.pid)
def daemon():
    # forks twice, leaves the session, and its parent ends: only re-parenting or the environment finds it
    if (middle := os.fork()) == 0:
        os.setsid()
        if os.fork() == 0:
            report(os.getpid())
            stubborn()
            time.sleep(300)
        os._exit(0)
    os.waitpid(middle, 0)
def tree():
    stubborn()
    stubborn(start_new_session=True)
    daemon()
    deadline = time.monotonic() + 60
    while len(open(os.environ["PIDS"]).readlines()) < 4 and time.monotonic() < deadline:
        time.sleep(0.02)
"""

GUARDED = """
import sys
from rl.driver.guardian import run_guarded
def driver():
    tree()
    print("driver", os.getpid(), flush=True)
    {body}
if __name__ == "__main__":
    sys.exit(run_guarded(driver, run_id=sys.argv[1], grace_s={grace_s}, kill_s=1.0))
"""


class GuardedRun:
    """A guardian in a process of its own, its driver, and the pids that the driver's tree reported."""

    def __init__(self, folder: Path, body: str, grace_s: float = 20.0) -> None:
        self.run_id = new_run_id()
        self.pids_file = folder / "pids"
        self.pids_file.touch()
        script = folder / "guarded.py"
        script.write_text(TREE + GUARDED.format(body=body, grace_s=grace_s))
        environment = os.environ | {
            "PIDS": str(self.pids_file),
            "PYTHONPATH": str(REPOSITORY),
            RUN_ID_VARIABLE: self.run_id,
        }
        self.guardian = subprocess.Popen(
            [sys.executable, str(script), self.run_id], env=environment, stdout=subprocess.PIPE, text=True
        )
        assert self.guardian.stdout is not None
        self.driver = int(self.guardian.stdout.readline().split()[1])

    def tree(self) -> list[int]:
        return [int(line) for line in self.pids_file.read_text().split()]

    def survivors(self) -> list[int]:
        return [pid for pid in [self.driver, *self.tree()] if _lives(pid)]


def _lives(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.fixture
def runs() -> Iterator[list[GuardedRun]]:
    started: list[GuardedRun] = []
    yield started
    for run in started:
        for pid in [run.guardian.pid, *run.survivors()]:
            if _lives(pid):
                os.kill(pid, signal.SIGKILL)
        run.guardian.communicate()


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("return 0", 0),
        ("return 3", 3),
        ("sys.exit(2)", 2),
        ("raise RuntimeError('a failing driver')", 1),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137),
    ],
)
def test_nothing_survives_however_the_driver_ends(tmp_path: Path, runs: list[GuardedRun], body: str, code: int) -> None:
    runs.append(run := GuardedRun(tmp_path, body))
    assert run.guardian.wait(60) == code
    assert len(run.tree()) == 4
    assert run.survivors() == []


def test_ctrl_c_is_passed_on_once_and_gives_the_driver_time(tmp_path: Path, runs: list[GuardedRun]) -> None:
    body = """
    from rl.driver.processes import install_signal_handlers
    seen = []
    install_signal_handlers(seen.append)
    print("ready", flush=True)
    while not seen: time.sleep(0.05)
    time.sleep(0.5)
    return 40 + len(seen)"""
    runs.append(run := GuardedRun(tmp_path, body))
    assert run.guardian.stdout is not None
    assert run.guardian.stdout.readline() == "ready\n"
    run.guardian.send_signal(signal.SIGINT)
    assert run.guardian.wait(60) == 41
    assert run.survivors() == []


def test_a_second_ctrl_c_ends_it_at_once(tmp_path: Path, runs: list[GuardedRun]) -> None:
    body = """
    from rl.driver.processes import install_signal_handlers
    install_signal_handlers(lambda signum: print("stopping", flush=True))
    print("ready", flush=True)
    while True: time.sleep(1)"""
    runs.append(run := GuardedRun(tmp_path, body, grace_s=100.0))
    assert run.guardian.stdout is not None
    assert run.guardian.stdout.readline() == "ready\n"
    run.guardian.send_signal(signal.SIGINT)
    assert run.guardian.stdout.readline() == "stopping\n"
    run.guardian.send_signal(signal.SIGINT)
    assert run.guardian.wait(60) == 137
    assert run.survivors() == []


def test_a_driver_that_ignores_the_signal_is_killed_after_the_grace(tmp_path: Path, runs: list[GuardedRun]) -> None:
    body = """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("ready", flush=True)
    while True: time.sleep(1)"""
    runs.append(run := GuardedRun(tmp_path, body, grace_s=1.0))
    assert run.guardian.stdout is not None
    assert run.guardian.stdout.readline() == "ready\n"
    run.guardian.send_signal(signal.SIGTERM)
    assert run.guardian.wait(60) == 137
    assert run.survivors() == []


def test_a_terminals_ctrl_c_reaches_the_driver_once(tmp_path: Path) -> None:
    script = tmp_path / "guarded.py"
    script.write_text(
        "import os, signal, sys, time\n"
        "from rl.driver.guardian import run_guarded\nfrom rl.driver.processes import install_signal_handlers\n"
        "def driver():\n"
        "    seen = []\n"
        "    install_signal_handlers(seen.append)\n"
        "    print('stdin is a terminal:', os.isatty(0), flush=True)\n"
        "    while not seen: time.sleep(0.05)\n"
        "    time.sleep(1.0)\n"
        "    return 40 + len(seen)\n"
        "sys.exit(run_guarded(driver, run_id=sys.argv[1]))\n"
    )
    pid, terminal = pty.fork()
    if pid == 0:
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
        os.execve(sys.executable, [sys.executable, str(script), new_run_id()], environment)
    try:
        seen = b""
        while b"terminal: False" not in seen:
            seen += os.read(terminal, 1024)
        os.write(terminal, b"\x03")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 41
    finally:
        os.close(terminal)


def test_a_killed_guardian_takes_the_driver_along(tmp_path: Path, runs: list[GuardedRun]) -> None:
    body = """
    from rl.driver.processes import install_signal_handlers
    stopped = []
    install_signal_handlers(stopped.append)
    print("ready", flush=True)
    while not stopped: time.sleep(0.1)
    return 1"""
    runs.append(run := GuardedRun(tmp_path, body))
    assert run.guardian.stdout is not None
    assert run.guardian.stdout.readline() == "ready\n"
    own_temp = Path(tempfile.gettempdir()) / f"{resource_prefix(run.run_id)}tmp"
    assert own_temp.exists()
    run.guardian.kill()
    _wait_until(lambda: run.survivors() == [] and not own_temp.exists())


def test_the_next_start_finds_what_a_double_kill_left(tmp_path: Path, runs: list[GuardedRun]) -> None:
    runs.append(run := GuardedRun(tmp_path, "time.sleep(300)"))
    run.guardian.kill()
    os.kill(run.driver, signal.SIGKILL)
    run.guardian.wait(60)
    assert len([pid for pid in run.tree() if _lives(pid)]) == 4
    assert {process.pid for process in processes_of_run(run.run_id)} >= set(run.tree())
    assert kill_run(run.run_id, grace_s=0.2) == []
    assert [pid for pid in run.tree() if _lives(pid)] == []


def test_a_strangers_process_is_spared() -> None:
    environment = os.environ | {RUN_ID_VARIABLE: "another"}
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"], env=environment)
    try:
        assert kill_run(new_run_id(), grace_s=0.0) == []
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_files_with_the_runs_prefix_are_swept_and_no_others() -> None:
    run_id, other = new_run_id(), new_run_id()
    segment = Path("/dev/shm") / f"{resource_prefix(run_id)}weights"
    spared = Path("/dev/shm") / f"{resource_prefix(other)}weights"
    folder = Path(tempfile.gettempdir()) / f"{resource_prefix(run_id)}ray"
    try:
        segment.write_bytes(b"w")
        spared.write_bytes(b"w")
        (folder / "session").mkdir(parents=True)
        assert set(sweep_files(run_id)) == {segment, folder}
        assert (segment.exists(), folder.exists(), spared.exists()) == (False, False, True)
    finally:
        spared.unlink()


def test_what_a_driver_leaves_in_the_temp_directory_is_swept(tmp_path: Path) -> None:
    """run_guarded's driver ends by os._exit: no library tidies up after itself (wandb would leave two directories)."""
    program = (
        "import subprocess, sys, tempfile\n"
        "from rl.driver.guardian import run_guarded\n"
        "def driver():\n"
        "    with open('left', 'w') as left:\n"
        "        print(tempfile.mkdtemp(), file=left)\n"
        "        subprocess.run([sys.executable, '-c', 'import tempfile; print(tempfile.mkdtemp())'], stdout=left)\n"
        "    return 0\n"
        f"sys.exit(run_guarded(driver, run_id='{new_run_id()}'))"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    subprocess.run([sys.executable, "-c", program], env=environment, cwd=tmp_path, check=True)
    left = [Path(line) for line in (tmp_path / "left").read_text().split()]
    assert len(left) == 2 and not any(path.exists() for path in left)


def test_segments_named_after_a_rendezvous_in_the_runs_temp_directory_are_swept() -> None:
    run_id = new_run_id()
    folder = Path(tempfile.gettempdir()) / f"{resource_prefix(run_id)}tmp"
    segment, other = SHARED_MEMORY / f"vllm_dist_{run_id}-tp0", SHARED_MEMORY / f"vllm_dist_x{run_id}-tp0"
    folder.mkdir()
    for path in (folder / f"vllm_dist_{run_id}", segment, other):
        path.touch()
    try:
        sweep_files(run_id)
        assert not folder.exists() and not segment.exists() and other.exists()
    finally:
        other.unlink()


def test_segments_that_killed_processes_had_mapped_are_swept() -> None:
    run_id = new_run_id()
    program = (
        "from multiprocessing.shared_memory import SharedMemory; import os, time\n"
        "segment = SharedMemory(create=True, size=4096); print(segment.name, flush=True); time.sleep(300)"
    )
    environment = os.environ | {RUN_ID_VARIABLE: run_id}
    owner = subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    segment = Path("/dev/shm") / owner.stdout.readline().strip()
    assert segment in shared_memory_of([psutil.Process(owner.pid)])
    assert kill_run(run_id, grace_s=0.0) == []
    owner.communicate()
    assert not segment.exists()


def _wait_until(condition: object, deadline_s: float = 60.0) -> None:
    assert callable(condition)
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, "still not true at the deadline"
        time.sleep(0.05)
