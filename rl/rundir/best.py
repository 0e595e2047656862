"""The best model so far by its evaluation: `best/` holds it as its checkpoint did, and says of which step it is."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from rl.rundir.atomic import atomic_write_json
from rl.rundir.checkpoint import ADAPTER, MODEL

ABOUT = "best.json"
"""In the folder: the step, and its success on held-out tasks."""


def keep_best(folder: Path, checkpoint: Path, step: int, success: float) -> bool:
    """Keep the exported model, or adapter, of a checkpoint in `folder` if its success is above that of the one there.

    Files are linked where the file system can, so that they cost nothing while the checkpoint is there. A crash leaves
    the former one, or none.
    """
    if not checkpoint.is_dir() or success <= best_success(folder):
        return False
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name in (MODEL, ADAPTER):
        if (checkpoint / name).is_dir():
            shutil.copytree(checkpoint / name, partial / name, copy_function=_link)
    atomic_write_json(partial / ABOUT, {"step": step, "success": success})
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return True


def best_success(folder: Path) -> float:
    """The success of the best model so far; below 0 without one."""
    try:
        return float(json.loads((folder / ABOUT).read_text(encoding="utf-8"))["success"])
    except (OSError, ValueError, KeyError, TypeError):
        return -1.0


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)
