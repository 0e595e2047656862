"""Drivers that end in every way, under a guardian: `python -m tests.rl.processes.guarded_drivers NAME RUN_ID GRACE_S`.

Most of them first start a tree of processes that are hard to end, and append their ids to the file $PIDS.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

from rl.processes.guardian import run_guarded
from rl.processes.signals import install_signal_handlers

TREE = 4
"""Number of processes that `tree` starts."""


def stubborn_child(**options: Any) -> None:
    """Start a process that ignores SIGTERM and SIGINT."""
    command = [sys.executable, "-m", __spec__.name, "stubborn"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, **options)
    assert child.stdout is not None
    child.stdout.readline()
    report(child.pid)


def stubborn() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    print("up", flush=True)
    time.sleep(300)


def daemon() -> None:
    """Fork twice and leave the session. Only re-parenting or the environment finds such a process."""
    if (middle := os.fork()) == 0:
        os.setsid()
        if os.fork() == 0:
            report(os.getpid())
            stubborn_child()
            time.sleep(300)
        os._exit(0)
    os.waitpid(middle, 0)


def report(pid: int) -> None:
    with open(os.environ["PIDS"], "a") as file:
        file.write(f"{pid}\n")


def tree() -> None:
    stubborn_child()
    stubborn_child(start_new_session=True)
    daemon()
    deadline = time.monotonic() + 60
    while len(Path(os.environ["PIDS"]).read_text().splitlines()) < TREE and time.monotonic() < deadline:
        time.sleep(0.02)
    print("driver", os.getpid(), flush=True)


def returns_0() -> int:
    tree()
    return 0


def returns_3() -> int:
    tree()
    return 3


def exits_with_2() -> int:
    tree()
    sys.exit(2)


def fails() -> int:
    tree()
    raise RuntimeError("a failing driver")


def kills_itself() -> int:
    tree()
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def sleeps() -> int:
    tree()
    time.sleep(300)
    return 0


def counts_signals() -> int:
    tree()
    return count_signals()


def counts_signals_of_a_terminal() -> int:
    print("stdin is a terminal:", os.isatty(0), flush=True)
    return count_signals()


def count_signals() -> int:
    seen: list[signal.Signals] = []
    install_signal_handlers(seen.append)
    print("ready", flush=True)
    while not seen:
        time.sleep(0.05)
    time.sleep(0.5)
    return 40 + len(seen)


def stops_never() -> int:
    tree()
    install_signal_handlers(lambda signum: print("stopping", flush=True))
    print("ready", flush=True)
    while True:
        time.sleep(1)


def ignores_sigterm() -> int:
    tree()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("ready", flush=True)
    while True:
        time.sleep(1)


def stops_at_a_signal() -> int:
    tree()
    stopped: list[signal.Signals] = []
    install_signal_handlers(stopped.append)
    print("ready", flush=True)
    while not stopped:
        time.sleep(0.1)
    return 1


def leaves_temporary_directories() -> int:
    print(tempfile.mkdtemp(), flush=True)
    subprocess.run([sys.executable, "-m", __spec__.name, "temporary_directory"], check=True)
    return 0


def temporary_directory() -> None:
    print(tempfile.mkdtemp(), flush=True)


def shared_memory() -> None:
    """Hold a segment of shared memory until it is killed."""
    segment = SharedMemory(create=True, size=4096)
    print(segment.name, flush=True)
    time.sleep(300)


DRIVERS: dict[str, Callable[[], int]] = {
    driver.__name__: driver
    for driver in (
        returns_0,
        returns_3,
        exits_with_2,
        fails,
        kills_itself,
        sleeps,
        counts_signals,
        counts_signals_of_a_terminal,
        stops_never,
        ignores_sigterm,
        stops_at_a_signal,
        leaves_temporary_directories,
    )
}


def main() -> None:
    name, *arguments = sys.argv[1:]
    if not arguments:
        globals()[name]()
        return
    run_id, grace_s = arguments
    sys.exit(run_guarded(DRIVERS[name], run_id=run_id, grace_s=float(grace_s), kill_s=1.0))


if __name__ == "__main__":
    main()
