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

from rl.paths import REPOSITORY
from rl.processes.signals import signal_handlers_kept
from rl.processes.tree import (
    RUN_ID_VARIABLE,
    SHARED_MEMORY,
    SOCKETS,
    kill_run,
    new_run_id,
    processes_of_run,
    resource_prefix,
    shared_memory_of,
    sweep_files,
    temp_directory,
)
from tests.rl.processes.guarded_drivers import TREE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

PROGRAM = [sys.executable, "-m", "tests.rl.processes.guarded_drivers"]


class GuardedRun:
    """A guardian in a process of its own, its driver, and the pids that the driver's tree reported."""

    def __init__(self, folder: Path, driver: str, grace_s: float = 20.0) -> None:
        self.run_id = new_run_id()
        self.pids_file = folder / "pids"
        self.pids_file.touch()
        environment = os.environ | {"PIDS": str(self.pids_file), RUN_ID_VARIABLE: self.run_id}
        self.guardian = subprocess.Popen(
            [*PROGRAM, driver, self.run_id, str(grace_s)],
            cwd=REPOSITORY,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.guardian.stdout is not None
        self.driver = int(self.guardian.stdout.readline().split()[1])

    def line(self) -> str:
        """The next line that the driver prints."""
        assert self.guardian.stdout is not None
        return self.guardian.stdout.readline()

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
    ("driver", "code"),
    [("returns_0", 0), ("returns_3", 3), ("exits_with_2", 2), ("fails", 1), ("kills_itself", 137)],
)
def test_nothing_survives_however_the_driver_ends(
    tmp_path: Path, runs: list[GuardedRun], driver: str, code: int
) -> None:
    runs.append(run := GuardedRun(tmp_path, driver))
    assert run.guardian.wait(60) == code
    assert len(run.tree()) == TREE
    assert run.survivors() == []


def test_ctrl_c_is_passed_on_once_and_gives_the_driver_time(tmp_path: Path, runs: list[GuardedRun]) -> None:
    runs.append(run := GuardedRun(tmp_path, "counts_signals"))
    assert run.line() == "ready\n"
    run.guardian.send_signal(signal.SIGINT)
    assert run.guardian.wait(60) == 41
    assert run.survivors() == []


def test_a_second_ctrl_c_ends_it_at_once(tmp_path: Path, runs: list[GuardedRun]) -> None:
    runs.append(run := GuardedRun(tmp_path, "stops_never", grace_s=100.0))
    assert run.line() == "ready\n"
    run.guardian.send_signal(signal.SIGINT)
    assert run.line() == "stopping\n"
    run.guardian.send_signal(signal.SIGINT)
    assert run.guardian.wait(60) == 137
    assert run.survivors() == []


def test_a_driver_that_ignores_the_signal_is_killed_after_the_grace(tmp_path: Path, runs: list[GuardedRun]) -> None:
    runs.append(run := GuardedRun(tmp_path, "ignores_sigterm", grace_s=1.0))
    assert run.line() == "ready\n"
    run.guardian.send_signal(signal.SIGTERM)
    assert run.guardian.wait(60) == 137
    assert run.survivors() == []


def test_a_terminals_ctrl_c_reaches_the_driver_once() -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(REPOSITORY)
        os.execv(sys.executable, [*PROGRAM, "counts_signals_of_a_terminal", new_run_id(), "20"])
    try:
        seen = b""
        while b"ready" not in seen:
            seen += os.read(terminal, 1024)
        assert b"terminal: False" in seen
        os.write(terminal, b"\x03")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 41
    finally:
        os.close(terminal)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_library_cannot_put_its_handler_in_the_place_of_ours(signum: signal.Signals) -> None:
    before = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
    told: list[signal.Signals] = []
    try:
        with signal_handlers_kept(told.append):
            ours = signal.getsignal(signum)
            assert signal.signal(signum, lambda *_: None) is ours
            os.kill(os.getpid(), signum)
            assert told == [signum]
        assert signal.getsignal(signum) is ours
        signal.signal(signum, signal.SIG_IGN)
        assert signal.getsignal(signum) == signal.SIG_IGN, "afterwards handlers can be installed again"
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def test_a_killed_guardian_takes_the_driver_along(tmp_path: Path, runs: list[GuardedRun]) -> None:
    runs.append(run := GuardedRun(tmp_path, "stops_at_a_signal"))
    assert run.line() == "ready\n"
    own_temp = Path(tempfile.gettempdir()) / f"{resource_prefix(run.run_id)}tmp"
    assert own_temp.exists()
    run.guardian.kill()
    _wait_until(lambda: run.survivors() == [] and not own_temp.exists())


def test_the_next_start_finds_what_a_double_kill_left(tmp_path: Path, runs: list[GuardedRun]) -> None:
    runs.append(run := GuardedRun(tmp_path, "sleeps"))
    run.guardian.kill()
    os.kill(run.driver, signal.SIGKILL)
    run.guardian.wait(60)
    assert len([pid for pid in run.tree() if _lives(pid)]) == TREE
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


def test_what_a_driver_leaves_in_the_temp_directory_is_swept() -> None:
    """The driver of `run_guarded` ends by os._exit, so no library tidies up after itself (wandb would leave two
    directories)."""
    command = [*PROGRAM, "leaves_temporary_directories", new_run_id(), "20"]
    done = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=True)
    left = [Path(line) for line in done.stdout.split()]
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
    environment = os.environ | {RUN_ID_VARIABLE: run_id}
    command = [*PROGRAM, "shared_memory"]
    owner = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True)
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


@pytest.mark.parametrize("length", [4, 23, 24, 87, 200])
def test_a_temp_directory_with_too_long_a_path_for_sockets_is_not_used(length: int, tmp_path: Path) -> None:
    own = "/" + "x" * (length - 1)
    chosen = temp_directory(own, str(tmp_path))
    assert chosen == (Path(own) if length <= 23 else tmp_path)
    assert length > 23 or len(f"{own}/{SOCKETS}") <= 107
    assert temp_directory(own, str(tmp_path / "absent")) == Path(own)
