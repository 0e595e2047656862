"""Nothing is left behind: every process, shared-memory segment and temporary directory of a run ends with it.

    shell ── guardian (run_guarded: adopts orphans, forwards signals, sweeps at the end)
               └─ driver (its own process group) ── ray, engines, workers, bwrap, wandb-core …

A process belongs to a run when it descends from the driver or guardian, or carries the run's id in its environment
(RUN_ID_VARIABLE). So daemons that forked twice and called setsid are found, too. Processes are identified by pid and
start time, never by name. Files belong to a run when their name starts with `resource_prefix`.

Only a kill -9 of guardian and driver at once leaves something behind. The next run in the same run directory ends it
with `kill_run(previous_run_id)`, except for orphans that forked from the driver without exec: the kernel shows only the
environment that a program was started with, and theirs lacks the run's id.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil

RUN_ID_VARIABLE = "SLUICE_RUN_ID"
LIFELINE = "SLUICE_LIFELINE"
"""Set to 1 in the environment of a process that ends by itself once the driver's end of its standard input is closed,
and must not be ended sooner: an srun, which kills the whole step on the other node as soon as it is signalled."""
LIFELINE_S = 25.0
"""How long such a process is waited for before it is signalled like the others."""
SHARED_MEMORY = Path("/dev/shm")
SOCKETS = "sluice-12345678-ray/session_2026-11-28_08-25-31_489123_1234567/sockets/plasma_store"
"""The longest path of a socket that Ray makes in the temp directory."""
SOCKET_BYTES = 107
"""The longest path of a socket that Linux takes."""


def temp_directory(own: str, shared: str = "/tmp") -> Path:
    """`own`, or the `shared` one if Ray's sockets would have too long a path in it, as in many a batch job's."""
    fits = len(os.fsencode(os.path.join(own, SOCKETS))) <= SOCKET_BYTES
    return Path(own if fits or not os.access(shared, os.W_OK) else shared)


TEMP = temp_directory(tempfile.gettempdir())
"""The machine's temp directory. A run makes a directory of its own in it (`run_guarded`)."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_POLL_S = 0.05


def new_run_id() -> str:
    """Eight hex digits. Short, because the paths of Ray's sockets contain it and may have at most 107 bytes."""
    return uuid.uuid4().hex[:8]


def resource_prefix(run_id: str) -> str:
    """The start of the names of a run's shared-memory segments and temporary directories."""
    return f"sluice-{run_id}-"


def become_subreaper() -> None:
    """Let orphaned descendants of this process become its children instead of init's. Linux only."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(signum: signal.Signals) -> None:
    """Let the kernel send `signum` to this process when the thread that forked it ends."""
    _prctl(_PR_SET_PDEATHSIG, signum)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value}) failed")


def descendants() -> list[psutil.Process]:
    """Living descendants of this process, parents before children; zombies are left out."""
    return [process for process in psutil.Process().children(recursive=True) if _alive(process)]


def processes_of_run(run_id: str) -> list[psutil.Process]:
    """Living processes that carry `run_id` in their environment, without this one and its ancestors.

    Only processes whose environment we may read are found; that includes every process that a run starts as its user.
    """
    spared = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    marker = f"{RUN_ID_VARIABLE}={run_id}".encode()
    found = []
    for process in psutil.process_iter():
        if process.pid not in spared and marker in _environment(process.pid) and _alive(process):
            found.append(process)
    return found


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


def kill_tree(*, grace_s: float = 3.0, deadline_s: float = 10.0) -> list[psutil.Process]:
    """End all descendants of this process: SIGTERM, after `grace_s` SIGKILL. Returns those alive at the deadline."""
    return _kill(descendants, grace_s, deadline_s)


def kill_run(run_id: str, *, grace_s: float = 3.0, deadline_s: float = 10.0) -> list[psutil.Process]:
    """End every process of a run, descendants of ours or not, and remove what it left in shared memory and temp.

    Returns the processes alive at the deadline; one in an uninterruptible system call can be.
    """
    segments: set[Path] = set()

    def members() -> list[psutil.Process]:
        own = processes_of_run(run_id)
        if os.environ.get(RUN_ID_VARIABLE) == run_id:
            own += [process for process in descendants() if process not in own]
        segments.update(shared_memory_of(own))
        return own

    left = _kill(members, grace_s, deadline_s)
    sweep_files(run_id, segments)
    return left


def _kill(find: Callable[[], list[psutil.Process]], grace_s: float, deadline_s: float) -> list[psutil.Process]:
    """End what `find` returns. Repeat until it finds none, because a dying process may still start another one."""
    start = time.monotonic()
    terminated: set[psutil.Process] = set()
    while members := find():
        elapsed = time.monotonic() - start
        spared = {process: LIFELINE_S if _is_lifeline(process) else 0.0 for process in members}
        if elapsed > deadline_s + max(spared.values()):
            return members
        for process in members:
            if elapsed > spared[process] + grace_s:
                _send(process, signal.SIGKILL)
            elif elapsed >= spared[process] and process not in terminated:
                terminated.add(process)
                _send(process, signal.SIGTERM)
        time.sleep(_POLL_S)
        _reap()
    return []


def _is_lifeline(process: psutil.Process) -> bool:
    return f"{LIFELINE}=1".encode() in _environment(process.pid)


def _send(process: psutil.Process, signum: signal.Signals) -> None:
    # psutil compares start times first, so a recycled pid is never signalled. A stopped process acts on SIGKILL only.
    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        process.send_signal(signum)


def _reap() -> None:
    """Reap children that have ended. It takes the exit codes of our own subprocesses, too: use it only at shutdown."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0] != 0:
            pass


def shared_memory_of(processes: Iterable[psutil.Process]) -> set[Path]:
    """The named /dev/shm segments that these processes have mapped (Python's psm_*, torch's, semaphores)."""
    segments = set()
    for process in processes:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{process.pid}/maps").read_text(errors="replace").splitlines():
                _, slash, name = line.partition(f" {SHARED_MEMORY}/")
                if slash and not name.endswith("(deleted)"):
                    segments.add(SHARED_MEMORY / name)
    return segments


def sweep_files(run_id: str, segments: Iterable[Path] = ()) -> list[Path]:
    """Remove the files and directories in /dev/shm and the temp directory that carry the run's prefix.

    `segments` are removed, too, unless a living process still maps them. Returns the paths that were removed.
    """
    in_use = shared_memory_of(psutil.process_iter())
    victims = [segment for segment in segments if segment not in in_use and segment.exists()]
    for folder in (SHARED_MEMORY, TEMP):
        victims += [path for path in folder.glob(resource_prefix(run_id) + "*") if path not in victims]
    # vLLM names shared memory after the rendezvous file that it leaves in the run's temp directory when it is killed.
    rendezvous = [entry.name for path in victims if path.is_dir() for entry in path.glob("vllm_dist_*")]
    victims += [segment for name in rendezvous for segment in SHARED_MEMORY.glob(f"{name}-*")]
    for path in victims:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return victims
