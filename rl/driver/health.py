"""Checks that stop the run when the numbers of a step or of an evaluation cannot be trusted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rollout.buffer.buffer import TooManyFailures
from rollout.cards import Card


def check_eval_failures(cards: Sequence[Card], limit: float) -> None:
    """Refuse an evaluation that lost too many trajectories: the success rate of the rest would mislead.

    Raises:
        TooManyFailures: more than `limit` of the trajectories were lost.
    """
    everything = [t for card in cards for t in card.trajectories]
    errors = [t.error for t in everything if t.outcome == "infra_error"]
    if len(errors) > limit * len(everything):
        raise TooManyFailures(
            f"evaluation: {len(errors)} of {len(everything)} trajectories were lost to infrastructure failures "
            f"(rollout.failure_share_limit is {limit}); the last one: {errors[-1]}"
        )


class Diverged(RuntimeError):
    """Raised when a training step produces NaN or infinity. The run stops and does not save the model."""


def check_finite(what: str, stats: Mapping[str, float], optimizer: str) -> None:
    """Refuse statistics that are not finite. `optimizer` is the recipe's section whose keys the message says to lower.

    ZeRO-3 silently skips a step whose gradient is not finite; training would go on as if the step had happened.

    Raises:
        Diverged: the loss, the gradient norm or the engine/trainer mismatch is not finite.
    """
    for name in ("loss", "grad_norm", "mismatch"):
        if not math.isfinite(stats.get(name, 0.0)):
            raise Diverged(
                f"{what}: {name} is {stats[name]}, and nothing of that step was saved; lower {optimizer}.lr or "
                f"{optimizer}.clip_norm and start again with resume=auto"
            )
