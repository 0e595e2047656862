"""The total reward of a trajectory, a weighted sum of its named parts, and the rule that says whether it succeeded."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from rewards.extension import nearest

TOTAL = "reward"
"""The name that a success rule uses for the total reward, beside the names of parts."""


def check_parts(named: Collection[str], known: Collection[str]) -> None:
    """Raise ValueError for a name that is no reward part. The message lists the parts and suggests the nearest one."""
    for name in named:
        if name not in known:
            raise ValueError(f"there is no reward part {name!r}: {sorted(known)}{nearest(name, sorted(known))}")


def compose(parts: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """The weighted sum of the parts. A part without a weight weighs 1; one with the weight 0 is only reported.

    Raises:
        ValueError: a part is not a finite number, so the scorer is broken, or the sum is too large to be one.
    """
    terms = [_number(name, value) * weights.get(name, 1.0) for name, value in parts.items()]
    if math.isfinite(sum(terms)):
        return math.fsum(terms)
    raise ValueError(f"the weighted sum of the reward parts {dict(parts)!r:.200} is no finite number")


def _number(name: str, value: object) -> float:
    """A part as a finite Python number; NumPy's numbers and truth values are numbers, too."""
    try:
        if not isinstance(value, str | bytes) and math.isfinite(number := float(value)):  # type: ignore[arg-type]
            return number
    except (TypeError, ValueError, OverflowError):
        pass
    raise ValueError(f"reward part {name!r} is {value!r:.100}: a scorer must return a finite number")


def succeeded(reward: float, parts: Mapping[str, float], rule: Mapping[str, float]) -> bool:
    """Whether every value that `rule` names, a part or the total `reward`, is at least the rule's minimum for it. A
    part that does not apply is left out; if none that is named applies, the trajectory is no success."""
    values = {**parts, TOTAL: reward}
    applying = [values[name] >= least for name, least in rule.items() if name in values]
    return bool(applying) and all(applying)
