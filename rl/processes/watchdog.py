"""Progress heartbeat and stall detection: when nothing has moved for a while, say who waits for whom, and stop.

The driver calls `beat` whenever something got done. On a stall a thread writes the stacks of all the run's processes
and a process table to logs/stacks-<time>.txt and calls `on_stall`, once. It kills nothing, with one exception: if the
driver has not closed the watchdog `exit_after_s` later, the thread calls `on_late` and ends it by os._exit, and its
guardian sweeps up.
"""

from __future__ import annotations

import faulthandler
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil

from rl.exitcodes import STALLED
from rl.processes.tree import descendants

_PY_SPY_S = 20.0
_SIGNAL_ANSWER_S = 1.0


@dataclass(frozen=True, slots=True)
class Stall:
    """`text` is for people; `stacks` is the file with all stacks and the process table, None if writing it failed."""

    last: str
    idle_s: float
    stacks: Path | None
    text: str


class Watchdog:
    """Calls `on_stall` once, when there was no `beat` for `stall_s`.

    `waiting` says in words what the driver waits for now ("8 groups from the buffer: 5 there, 3 running").
    """

    def __init__(
        self,
        *,
        stall_s: float,
        on_stall: Callable[[Stall], None],
        on_late: Callable[[Stall], None],
        logs_dir: Path,
        waiting: Callable[[], str],
        exit_after_s: float = 25.0,
    ) -> None:
        self._stall_s = stall_s
        self._on_stall, self._on_late = on_stall, on_late
        self._logs_dir = logs_dir
        self._waiting = waiting
        self._exit_after_s = exit_after_s
        self._beat = (time.monotonic(), "start")
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> Self:
        self._thread.start()
        return self

    def beat(self, what: str) -> None:
        """Record progress. `what` names what begins or what got done. May be called from any thread."""
        self._beat = (time.monotonic(), what)

    def close(self) -> None:
        self._closed.set()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _watch(self) -> None:
        while not self._closed.is_set():
            at, what = self._beat
            idle = time.monotonic() - at
            if idle >= self._stall_s:
                return self._report(what, idle)
            self._closed.wait(self._stall_s - idle)

    def _report(self, what: str, idle: float) -> None:
        path, stacks = None, ""
        try:
            path = dump_stacks(self._logs_dir)
            stacks = str(path)
        except Exception as error:  # a full disk, say; without this thread nothing would end the run
            stacks = f"not written ({type(error).__name__}: {error})"
        try:
            waiting = self._waiting()
        except Exception as error:  # whatever broke the run may break this too; the report must still come out
            waiting = f"unknown ({type(error).__name__}: {error})"
        text = (
            f"no progress for {idle:.0f} s (run.stall_s={self._stall_s:g}). Last: {what}. "
            f"Waiting for: {waiting}. Stacks of all processes: {stacks}"
        )
        stall = Stall(last=what, idle_s=idle, stacks=path, text=text)
        self._on_stall(stall)
        if not self._closed.wait(self._exit_after_s):
            try:
                self._on_late(stall)
            finally:
                os._exit(STALLED)


def dump_stacks(logs_dir: Path) -> Path:
    """Write the process table and every Python stack of this process and its descendants; returns the file."""
    processes = [psutil.Process(), *descendants()]
    path = logs_dir / f"stacks-{time.strftime('%Y%m%d-%H%M%S')}.txt"
    with path.open("w", encoding="utf-8") as file:
        file.write(process_table(processes) + "\n")
        file.write(f"\n=== {_describe(processes[0])} (this process) ===\n")
        file.flush()
        faulthandler.dump_traceback(file=file, all_threads=True)
        targets = [process for process in processes[1:] if _is_python(process)]
        with ThreadPoolExecutor(max_workers=4) as pool:
            for process, stack in zip(targets, pool.map(_stack_of, targets), strict=True):
                file.write(f"\n=== {_describe(process)} ===\n{stack}\n")
    return path


def process_table(processes: list[psutil.Process]) -> str:
    """A table with pid, parent, state, CPU seconds, resident MB and role of each process that still lives."""
    rows = [f"{'pid':>8} {'parent':>8} {'state':<10} {'cpu s':>8} {'rss MB':>8}  role"]
    for process in processes:
        try:
            with process.oneshot():
                cpu = sum(process.cpu_times()[:2])
                rss = process.memory_info().rss / 2**20
                row = f"{process.pid:>8} {process.ppid():>8} {process.status():<10} {cpu:>8.1f} {rss:>8.0f}  "
            rows.append(row + role_of(process))
        except psutil.Error:
            continue
    return "\n".join(rows)


def role_of(process: psutil.Process) -> str:
    """The name of the log that its standard error goes to (`enter_role`), else its command line."""
    try:
        target = Path(os.readlink(f"/proc/{process.pid}/fd/2"))
        if target.suffix == ".log":
            return target.stem
    except OSError:
        pass
    try:
        return " ".join(" ".join(process.cmdline()).split())[:100] or process.name()
    except psutil.Error:
        return "?"


def _describe(process: psutil.Process) -> str:
    return f"{process.pid} {role_of(process)}"


def _is_python(process: psutil.Process) -> bool:
    try:
        return "python" in Path(process.exe()).name
    except psutil.Error:
        return False


def _stack_of(process: psutil.Process) -> str:
    """The stack by py-spy, which needs permission to trace; else by faulthandler on SIGUSR1, where that is set up."""
    program = _py_spy()
    failure = "py-spy is not installed"
    if program is not None:
        try:
            done = subprocess.run(
                [program, "dump", "--pid", str(process.pid)], capture_output=True, text=True, timeout=_PY_SPY_S
            )
        except subprocess.TimeoutExpired:
            failure = f"py-spy did not answer within {_PY_SPY_S:g} s"
        else:
            if done.returncode == 0:
                return done.stdout
            failure = (done.stderr.strip().splitlines() or ["py-spy failed"])[-1]
    return f"({failure})\n" + _stack_by_signal(process)


def _py_spy() -> str | None:
    beside = Path(sys.executable).with_name("py-spy")
    return str(beside) if beside.exists() else shutil.which("py-spy")


def _stack_by_signal(process: psutil.Process) -> str:
    """Send SIGUSR1 and return what faulthandler appends to the process's log. Without a handler, a process would die of
    SIGUSR1, so none is sent."""
    try:
        log = Path(os.readlink(f"/proc/{process.pid}/fd/2"))
        if not _catches(process.pid, signal.SIGUSR1) or not log.is_file():
            return "(no stack: it has no faulthandler on SIGUSR1 that writes to a log)"
        before = log.stat().st_size
        process.send_signal(signal.SIGUSR1)
        time.sleep(_SIGNAL_ANSWER_S)
        with log.open("rb") as file:
            file.seek(before)
            return file.read().decode(errors="replace")
    except (OSError, psutil.Error) as error:
        return f"(no stack: {error})"


def _catches(pid: int, signum: signal.Signals) -> bool:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (signum - 1) & 1)
    return False
