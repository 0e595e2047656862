"""The guardian: a small parent process that outlives the driver and sweeps up after it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable

from rl.processes.tree import RUN_ID_VARIABLE, TEMP, become_subreaper, die_with_parent, kill_run, resource_prefix

SHOW_CURSOR = "\x1b[?25h"
"""The control sequence that shows the cursor. A progress bar hides it, and a killed driver cannot show it again."""

_GUARDED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_guarded(driver: Callable[[], int], *, run_id: str, grace_s: float = 25.0, kill_s: float = 5.0) -> int:
    """Fork: the child runs `driver`, and this process stays as its guardian. Returns the exit code to leave with.

    However the driver ends (return, exception, kill -9), the guardian ends everything else that the run started within
    about `kill_s` seconds, and removes its files. The first SIGINT, SIGTERM or SIGHUP is passed on (SIGHUP as SIGTERM)
    and gives the driver `grace_s` seconds to end; the second one kills it at once. When the guardian itself is killed,
    the driver gets SIGTERM. If a signal ended the driver, the exit code is 128 + signal. Must be called before any
    thread is started. The child leaves by os._exit, so that no atexit hook of a library can delay the end of the run.
    """
    assert threading.active_count() == 1, "run_guarded forks: call it before any thread is started"
    os.environ[RUN_ID_VARIABLE] = run_id
    become_subreaper()
    guardian = os.getpid()
    watched = {signal.SIGCHLD, *_GUARDED_SIGNALS}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        _run_driver(driver, guardian)
    try:
        code = _guard(pid, watched, grace_s)
        if sys.stdout.isatty():
            print(SHOW_CURSOR, end="", flush=True)
        left = kill_run(run_id, grace_s=kill_s / 2, deadline_s=kill_s)
        for process in left:
            print(f"could not end process {process.pid}: {process}", file=sys.stderr)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return code


def _run_driver(driver: Callable[[], int], guardian: int) -> None:
    code = 1
    try:
        _use_own_temp_directory()
        die_with_parent(signal.SIGTERM)
        if os.getppid() != guardian:
            os._exit(128 + signal.SIGTERM)
        # In a process group of its own, the driver gets the terminal's Ctrl-C only from the guardian, and only once.
        # Its children, which it ends in order, do not get it at all. With SIGTTOU ignored, the group may still write
        # to the terminal.
        os.setpgid(0, 0)
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        with open(os.devnull, "rb") as nothing:
            os.dup2(nothing.fileno(), 0)  # reading from the terminal would stop us: nothing may prompt
        become_subreaper()
        code = driver()
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        if os.getppid() != guardian:  # the guardian was killed, so nobody else will sweep
            kill_run(os.environ[RUN_ID_VARIABLE], grace_s=1.0)
        os._exit(code)


def _use_own_temp_directory() -> None:
    """Give the run a temp directory of its own, which the guardian sweeps. Libraries leave files there: wandb at an
    os._exit, vLLM when it is killed."""
    own = TEMP / f"{resource_prefix(os.environ[RUN_ID_VARIABLE])}tmp"
    own.mkdir()
    os.environ["TMPDIR"] = tempfile.tempdir = str(own)


def _guard(driver: int, watched: set[signal.Signals], grace_s: float) -> int:
    """Wait for the driver and return its exit code. Meanwhile pass signals on to it and reap adopted processes."""
    give_up_at: float | None = None
    while True:
        info = signal.sigtimedwait(watched, 1.0)
        if (code := _exit_code(driver)) is not None:
            return code
        if info is not None and info.si_signo in _GUARDED_SIGNALS:
            first = give_up_at is None
            give_up_at = time.monotonic() + grace_s if first else time.monotonic()
            if first:
                os.kill(driver, signal.SIGINT if info.si_signo == signal.SIGINT else signal.SIGTERM)
        if give_up_at is not None and time.monotonic() >= give_up_at:
            os.kill(driver, signal.SIGKILL)


def _exit_code(driver: int) -> int | None:
    """The driver's exit code, None while it lives. Reaps every other child that has ended."""
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return None
        if pid == driver:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
