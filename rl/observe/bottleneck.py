"""The part of a step that took the most time, and the configuration key to change first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Bottleneck(NamedTuple):
    name: str
    knob: str
    """The configuration key to change first."""


_WAITING = Bottleneck("waiting for rollouts", "inference.replicas")

_ENVIRONMENT = Bottleneck("environment", "rollout.workers")

_STAGES = {
    "time/wait_rollouts_s": _WAITING,
    "time/train_s": Bottleneck("training", "trainer.ranks"),
    "time/weight_sync_s": Bottleneck("weight sync", "weight_sync.bucket_mb"),
    "time/turns_s": Bottleneck("taking turns", "placement"),
}

BOTTLENECKS = (*_STAGES.values(), _ENVIRONMENT)


def bottleneck(times: Mapping[str, float]) -> Bottleneck:
    """The part of a step that took most of its time.

    `times` holds the step's `time/*` metrics; other keys are ignored, and absent ones count as 0. Waiting for rollouts
    is attributed to the environment when an average trajectory spends longer there than with the engine.
    """
    longest = max(_STAGES, key=lambda name: times.get(name, 0.0))
    if longest == "time/wait_rollouts_s" and times.get("time/environment_s", 0.0) > times.get("time/generate_s", 0.0):
        return _ENVIRONMENT
    return _STAGES[longest]
