"""TensorBoard as a sink: event files in `<run directory>/tensorboard`.

A resumed run says from which step on the earlier values do not count, and TensorBoard leaves those out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rl.observe.tracking.sampled import Chosen, table
from rollout.store.reading import FOLDER

EVENTS = "tensorboard"


class TensorBoardSink:
    """`first_step` is the first one that this start may log."""

    def __init__(self, directory: Path, *, recipe: Mapping[str, Any], first_step: int) -> None:
        from tensorboardX import SummaryWriter

        self._trajectories = directory / FOLDER
        self._writer = SummaryWriter(str(directory / EVENTS), purge_step=first_step)
        self._writer.add_text("recipe", _code(json.dumps(recipe, indent=1)), first_step)
        self._step = first_step

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._step = step
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def alert(self, title: str, text: str) -> None:
        self._writer.add_text("alerts", f"**{title}**: {text}", self._step)

    def trajectories(self, step: int, chosen: Sequence[Chosen]) -> None:
        for number, row in enumerate(table(self._trajectories, step, chosen)):
            about = f"advantage {row['advantage']}, versions {row['versions']}, {row['ending']}"
            self._writer.add_text(f"trajectories/{number}", f"{about}\n\n{_code(str(row['conversation']))}", step)

    def end(self, exit_code: int, summary: Mapping[str, Any]) -> None:
        self._writer.add_text("summary", _code(json.dumps(summary, indent=1)), self._step)
        self._writer.close()


def _code(text: str) -> str:
    """The text as a block of code in Markdown, which shows it as it is."""
    return "\n".join(f"    {line}" for line in text.splitlines())
