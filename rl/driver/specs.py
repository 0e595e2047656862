"""What the buffer's and the workers' processes need of the recipe."""

from __future__ import annotations

from rl.driver.session import Session
from rollout.actors.worker import WorkerSpec
from rollout.buffer.buffer import BufferSpec


def worker_spec(run: Session) -> WorkerSpec:
    recipe = run.recipe
    return WorkerSpec(
        model_path=recipe.model.path,
        renderer=recipe.model.renderer,
        rollout=recipe.rollout,
        sandbox=recipe.sandbox,
        evaluation=recipe.eval,
        reward_weights=recipe.rewards.weights,
        generate_timeout_s=recipe.inference.generate_timeout_s,
        seed=recipe.run.seed,
    )


def buffer_spec(run: Session) -> BufferSpec:
    recipe = run.recipe
    return BufferSpec(
        tasks=recipe.tasks,
        max_staleness=recipe.buffer.max_staleness,
        groups_per_step=recipe.trainer.groups_per_step,
        failure_share_limit=recipe.rollout.failure_share_limit,
        seed=recipe.run.seed,
    )
