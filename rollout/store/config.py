"""The recipe's `trajectories:` section."""

from __future__ import annotations

from pydantic import Field

from rewards.strict import StrictModel


class TrajectoriesConfig(StrictModel):
    """Where finished groups are kept: run.dir/trajectories, which every machine of a run must see."""

    segment_mb: float = Field(default=256.0, gt=0)
    """A worker begins a new file when its own has this many megabytes (compressed), and seals the full one."""
    keep_gb: float | None = Field(default=None, gt=0)
    """Above this many gigabytes the oldest files are deleted; null: none. Files that a kept checkpoint or a later step
    needs stay, so the folder can be larger."""
    trained_tokens: bool = True
    """Whether the trainer's ranks keep the advantage and the log-probability of each trained token, for people, in
    run.dir/trained: at most 8 bytes a token."""
