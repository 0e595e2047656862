"""The recipe's `buffer:` section."""

from __future__ import annotations

from pydantic import Field

from rewards.strict import StrictModel


class BufferConfig(StrictModel):
    max_staleness: int = Field(default=1, ge=0)
    """S: a step that trains version v uses only tokens of versions >= v - S. 0 is exactly on-policy."""
