"""Saves a workspace as a run does, and as people do: `python -m tests.rl.observe.saved_workspace FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

from rl.observe.tracking.workspace import main, save_once, workspace


def saved(run: Path) -> None:
    for _ in range(2):
        save_once(workspace("an-entity", "a-project", "sluice · mine", "abc123"), run / "wandb")
    main(run)


if __name__ == "__main__":
    saved(Path(sys.argv[1]))
