"""The settings of each stage that trains the policy, as its trainer ranks need them."""

from __future__ import annotations

from dataclasses import dataclass

from rl.config import Recipe
from rl.learner.config import OptimizerConfig
from rl.losses.config import SUPERVISED, ObjectiveSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingStage:
    """A stage's optimizer, and the objective that it minimises."""

    optimizer: OptimizerConfig
    objective: ObjectiveSpec


def supervised_stage(recipe: Recipe) -> TrainingStage:
    assert recipe.sft is not None
    return TrainingStage(optimizer=recipe.sft.optimizer, objective=SUPERVISED)


def policy_stage(recipe: Recipe) -> TrainingStage:
    return TrainingStage(
        optimizer=recipe.trainer.optimizer,
        objective=ObjectiveSpec(loss=recipe.loss, correction=recipe.correction, kl=recipe.kl),
    )
