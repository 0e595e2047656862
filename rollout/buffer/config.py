"""The recipe's `buffer:` section."""

from __future__ import annotations

from pydantic import Field

from rewards.strict import StrictModel


class BufferConfig(StrictModel):
    max_staleness: int = Field(default=1, ge=0)
    """S: at consumption every trained token's version is >= v - S. 0 is exactly on-policy."""
