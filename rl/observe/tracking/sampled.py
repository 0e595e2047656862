"""The trajectories of a step that people are shown, and what a table has of each. (rl.driver.shown chooses them.)"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rl.observe.transcript import ending, transcript
from rollout.store.segments import read_group
from rollout.types import Address, Group, Trajectory

log = logging.getLogger(__name__)

Cell = str | float | int | bool | None
COLUMNS = (
    "step", "task", "source", "group", "trajectory", "conversation", "ending", "reward", "parts", "success",
    "advantage", "versions", "tokens",
)  # fmt: skip
"""The columns of a table of trajectories, a row each."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """Trajectory number `member` of the group at `address`. `advantage` is the mean over its trained tokens, before a
    KL penalty; None where it was not trained."""

    address: Address
    member: int
    advantage: float | None


def table(folder: Path, step: int, chosen: Sequence[Chosen]) -> list[Mapping[str, Cell]]:
    """The rows of a table, read from the trajectory store. A group that cannot be read (any more) has none."""
    rows = []
    for one in chosen:
        try:
            rows.append(_row(read_group(folder, one.address), step, one))
        except Exception as error:  # what an environment of somebody's own made of a message, say
            log.warning("left out of the table of trajectories: %s: %s", type(error).__name__, error)
    return rows


def _row(group: Group, step: int, one: Chosen) -> Mapping[str, Cell]:
    trajectory = group.trajectories[one.member]
    return {
        "step": step,
        "task": group.task.id,
        "source": group.task.source,
        "group": group.id,
        "trajectory": one.member,
        "conversation": transcript(group, trajectory),
        "ending": ending(trajectory),
        "reward": trajectory.reward,
        "parts": ", ".join(f"{name} {value:g}" for name, value in trajectory.reward_parts.items()),
        "success": trajectory.success,
        "advantage": one.advantage,
        "versions": _versions(trajectory),
        "tokens": sum(sample.trained_tokens for sample in trajectory.samples),
    }


def _versions(trajectory: Trajectory) -> str:
    """The policy versions that sampled it: `3`, or `3–5`."""
    versions = sorted({int(v) for sample in trajectory.samples for v in sample.sampled_versions()})
    return "–".join(map(str, dict.fromkeys([versions[0], versions[-1]]))) if versions else ""
