"""When the numbers of a step say that the run must stop."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rollout.buffer.buffer import TooManyFailures
from rollout.types import Group


def check_eval_failures(groups: Sequence[Group], limit: float) -> None:
    """Success among the few that infrastructure spared says nothing about the policy.

    Raises:
        TooManyFailures: more than `limit` of the trajectories were lost.
    """
    everything = [t for group in groups for t in group.trajectories]
    errors = [t.error for t in everything if t.outcome == "infra_error"]
    if len(errors) > limit * len(everything):
        raise TooManyFailures(
            f"evaluation: {len(errors)} of {len(everything)} trajectories were lost to infrastructure failures "
            f"(rollout.failure_share_limit is {limit}); the last one: {errors[-1]}"
        )


class Diverged(RuntimeError):
    """A training step computed something that is not a number: its model must not go on, nor be saved."""


def check_finite(what: str, stats: Mapping[str, float], optimizer: str) -> None:
    """`optimizer` is the recipe's section of the keys to lower.

    ZeRO-3 skips a step with a gradient that is not finite without a word, and training goes on as if it had happened.

    Raises:
        Diverged: the loss, the gradient norm or the engine/trainer mismatch is not finite.
    """
    for name in ("loss", "grad_norm", "mismatch"):
        if not math.isfinite(stats.get(name, 0.0)):
            raise Diverged(
                f"{what}: {name} is {stats[name]}, and nothing of that step was saved; lower {optimizer}.lr or "
                f"{optimizer}.clip_norm and start again with resume=auto"
            )
