"""The recipe's `checkpoint:` section, and its key `resume`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rewards.strict import StrictModel

Resume = Literal["never", "auto", "must"]


class CheckpointConfig(StrictModel):
    every: int = Field(default=10, ge=0)
    """Steps between checkpoints. The last step always has one; 0: only the last step has one."""
    keep: int = Field(default=2, ge=1)
    """How many of the newest checkpoints are kept."""
