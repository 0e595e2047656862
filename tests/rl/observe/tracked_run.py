"""A run with a real tracker: `python -m tests.rl.observe.tracked_run NAME FOLDER`.

$DEADLINES holds two numbers: the seconds that a call into wandb may take, and those that `finish` may take.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import psutil

from rl.observe.config import WandbConfig
from rl.observe.tracking import Tracker

CONFIG = WandbConfig(mode="offline", project="a-project", entity="an-entity", group="a-group")


def main(name: str, folder: Path) -> None:
    call_s, end_s = (float(text) for text in os.environ.get("DEADLINES", "90 60").split())
    warnings: list[str] = []
    tracker = Tracker(CONFIG, folder, name="quickstart", recipe={"seed": 1}, warn=warnings.append, deadline_s=call_s)
    for step in (1, 2):
        tracker.log(step, {"reward/mean": step / 4, "reward/part/tests": 1.0})
    tracker.alert("entropy", "step 2: it is 0")
    while name == "forever":
        time.sleep(1)
    if name == "log_later":
        time.sleep(0.3)
        tracker.log(3, {"reward/mean": 1.0})
        print(tracker.active)
    tracker.finish(0, {"steps": 2}, deadline_s=end_s)
    tracker.finish(0, {"steps": 2})
    print(len(warnings), *warnings, sep="|")
    print([child.cmdline() for child in psutil.Process().children(recursive=True)])


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
