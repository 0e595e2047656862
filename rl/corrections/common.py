"""What a correction returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Correction:
    """A factor for the loss of every token, and the tokens that stay in it.

    A rejected token's loss counts as 0; the weights of the others do not change, so the step's loss is over as many
    tokens as before.
    """

    weight: Tensor
    """[T], detached."""
    keep: Tensor
    """[T], bool."""
