"""The total reward of a trajectory: a weighted sum of its named parts."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Mapping


def check_weights(weights: Mapping[str, float], known: Collection[str]) -> None:
    """Raise ValueError for a weight that is not finite or whose part no environment of the recipe has (`known`)."""
    for name, weight in weights.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"rewards.weights: no environment has a reward part {name!r}: {sorted(known)}{hint}")
        if not math.isfinite(weight):
            raise ValueError(f"rewards.weights.{name}: {weight} is not a finite number")


def compose(parts: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """The weighted sum of the parts. A part without a weight weighs 1; one with the weight 0 is only reported.

    A weight whose part this environment does not have is skipped: recipes mix environments, `check_weights` is what
    catches a misspelt name. Raises ValueError for a part that is not a finite number: the scorer is broken.
    """
    for name, value in parts.items():
        if not math.isfinite(value):
            raise ValueError(f"reward part {name!r} is {value}: a scorer must return a finite number")
    return math.fsum(value * weights.get(name, 1.0) for name, value in parts.items())
