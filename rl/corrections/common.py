"""The return type of a correction."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Correction:
    """A factor for the loss of every token, and the tokens that are kept.

    A rejected token's loss counts as 0. The aggregation weights of the other tokens do not change, so the denominator
    of the step's loss still counts the rejected tokens.
    """

    weight: Tensor
    """[M], detached."""
    keep: Tensor
    """[M], bool."""
