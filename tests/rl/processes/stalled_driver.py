"""A driver that stalls and has a worker that stalls: `python -m tests.rl.processes.stalled_driver LOGS [PYTHON]`.

PYTHON becomes the driver's `sys.executable`. The test gives one that has no py-spy beside it.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

from rl.processes.watchdog import Stall, Watchdog
from rollout.actors.process import enter_role

EXIT_AFTER_S = 0.5


def stuck_in_the_driver() -> None:
    threading.Event().wait()


def stuck_in_the_worker(logs: Path) -> None:
    (logs / "up").touch()
    time.sleep(300)


def worker(logs: Path) -> None:
    enter_role("worker-0", str(logs))
    stuck_in_the_worker(logs)


def driver(logs: Path) -> None:
    stuck = subprocess.Popen([sys.executable, "-m", "tests.rl.processes.stalled_driver", "worker", str(logs)])
    while not (logs / "up").exists():
        time.sleep(0.05)

    def on_stall(stall: Stall) -> None:
        print(stall.text, stall.stacks, sep="\n", flush=True)
        stuck.kill()

    watchdog = Watchdog(
        stall_s=0.5,
        on_stall=on_stall,
        on_late=lambda stall: print(f"late: {stall.text}", file=sys.stderr, flush=True),
        logs_dir=logs,
        waiting=lambda: "8 groups",
        exit_after_s=EXIT_AFTER_S,
    )
    with watchdog:
        watchdog.beat("step 3: learn")
        stuck_in_the_driver()


if __name__ == "__main__":
    if sys.argv[1] == "worker":
        worker(Path(sys.argv[2]))
    else:
        sys.executable = (sys.argv[2:] or [sys.executable])[0]
        driver(Path(sys.argv[1]))
