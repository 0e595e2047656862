"""The trackers of a run, by its recipe, as one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rl.observe.config import TensorBoardConfig, WandbConfig
from rl.observe.tracking.sampled import Chosen
from rl.observe.tracking.tensorboard_sink import TensorBoardSink
from rl.observe.tracking.tracker import Tracker
from rl.observe.tracking.wandb_sink import WandbSink, end_service, resolve_mode

Warn = Callable[[str], None]


class Trackers:
    """Hands everything to each tracker. For the methods see `Tracker`."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = trackers

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for tracker in self._trackers:
            tracker.log(step, values)

    def alert(self, title: str, text: str) -> None:
        for tracker in self._trackers:
            tracker.alert(title, text)

    def trajectories(self, step: int, chosen: Sequence[Chosen]) -> None:
        for tracker in self._trackers:
            tracker.trajectories(step, chosen)

    def finish(self, exit_code: int, summary: Mapping[str, Any], *, deadline_s: float = 30.0) -> None:
        end = time.monotonic() + deadline_s
        for tracker in self._trackers:
            tracker.finish(exit_code, summary, deadline_s=max(end - time.monotonic(), 1.0))


def wandb_tracker(
    config: WandbConfig,
    directory: Path,
    *,
    name: str,
    recipe: Mapping[str, Any],
    warn: Warn,
    deadline_s: float = 90.0,
) -> list[Tracker]:
    """The tracker that feeds wandb; none where it is disabled."""
    if resolve_mode(config) == "disabled":
        return []

    def open_sink() -> WandbSink:
        return WandbSink(config, directory, name=name, recipe=recipe, timeout_s=deadline_s)

    return [Tracker("wandb", open_sink, warn=warn, deadline_s=deadline_s, abandon=end_service)]


def tensorboard_tracker(
    config: TensorBoardConfig, directory: Path, *, recipe: Mapping[str, Any], first_step: int, warn: Warn
) -> list[Tracker]:
    """The tracker that feeds TensorBoard; none where nobody asked for it."""
    if not config.enabled:
        return []
    return [Tracker("tensorboard", lambda: TensorBoardSink(directory, recipe=recipe, first_step=first_step), warn=warn)]
