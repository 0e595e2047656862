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

from rl.driver.processes import RUN_ID_VARIABLE, TEMP, become_subreaper, die_with_parent, kill_run, resource_prefix

SHOW_CURSOR = "\x1b[?25h"
"""A progress bar hides it, and a driver that was killed could not bring it back."""

_GUARDED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_guarded(driver: Callable[[], int], *, run_id: str, grace_s: float = 25.0, kill_s: float = 5.0) -> int:
    """Fork; the child runs `driver`, this process stays as its guardian. Returns the exit code to leave with.

    However the driver ends (return, exception, kill -9), everything else that the run started is ended within about
    `kill_s` and swept. The first SIGINT, SIGTERM or SIGHUP is passed on and gives the driver `grace_s`; the second ends
    it at once. When the guardian itself is killed, the driver gets SIGTERM. A driver that a signal ended counts as
    128 + signal. Must be called before any thread is started. The child leaves by os._exit, so that no atexit hook of a
    library can hold the run up.
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
        # An own group: the terminal's Ctrl-C reaches the guardian alone, so the driver gets it once and its children,
        # which it ends in order, don't get it at all. Background groups may still write to the terminal.
        os.setpgid(0, 0)
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        with open(os.devnull, "rb") as nothing:
            os.dup2(nothing.fileno(), 0)  # but one that reads from it is stopped: nothing may prompt
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
        if os.getppid() != guardian:  # it was killed, and nobody else will sweep
            kill_run(os.environ[RUN_ID_VARIABLE], grace_s=1.0)
        os._exit(code)


def _use_own_temp_directory() -> None:
    """Libraries leave files there (wandb at an os._exit, vLLM when it is killed), which the guardian then sweeps."""
    own = TEMP / f"{resource_prefix(os.environ[RUN_ID_VARIABLE])}tmp"
    own.mkdir()
    os.environ["TMPDIR"] = tempfile.tempdir = str(own)


def _guard(driver: int, watched: set[signal.Signals], grace_s: float) -> int:
    """Wait for the driver; reap whoever else is adopted meanwhile."""
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
    """None while the driver lives. Collects every other ended child on the way."""
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return None
        if pid == driver:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
