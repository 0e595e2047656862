"""Publish a checkpoint and die before a change: `python -m tests.rl.rundir.crashing_publish ROOT STEP CHANGE`.

CHANGE is a number from 0. It counts renames, removals and new directories.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from rl.rundir.checkpoint import CheckpointStore

CRASH = 9
CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir")


def main(root: Path, step: int, left: int) -> None:
    def crash_before_a_change(event: str, _: tuple[object, ...]) -> None:
        nonlocal left
        if event in CHANGES:
            left -= 1
            if left < 0:
                os._exit(CRASH)

    store = CheckpointStore(root, keep=2)
    folder = store.begin(step)
    for name in "ab":
        (folder / name).write_text(f"new {step}")
    sys.addaudithook(crash_before_a_change)
    store.publish(step)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
