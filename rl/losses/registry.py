"""The two objectives as functions of one micro-batch: what a stage binds of the recipe."""

from __future__ import annotations

from functools import partial

from rl.advantages.config import AlgorithmConfig
from rl.batch.tensors import Objective
from rl.losses.clipped import policy_loss
from rl.losses.sft import sft_loss


def policy_objective(algorithm: AlgorithmConfig, version: int) -> Objective:
    """The clipped policy loss; `version` is the policy's, which tells fresh tokens from stale ones."""
    return partial(policy_loss, clip_low=algorithm.clip_low, clip_high=algorithm.clip_high, version=version)


def sft_objective() -> Objective:
    return sft_loss
