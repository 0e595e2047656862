"""The whole recipe as one tree of strict typed models: every section is defined next to its owner."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rewards.config import RewardConfig
from rewards.sandbox.config import SandboxConfig
from rewards.strict import StrictModel
from rl.advantages.config import AlgorithmConfig
from rl.learner.config import ModelConfig, TrainerConfig
from rl.observe.config import WandbConfig
from rl.sft.config import SftConfig
from rollout.agent.config import EvalConfig, RolloutConfig
from rollout.buffer.config import BufferConfig
from rollout.engine.config import InferenceConfig
from rollout.tasks.config import TasksConfig
from rollout.transfer.config import WeightSyncConfig


class RunConfig(StrictModel):
    name: str = "run"
    dir: str | None = None
    """The run directory; None: runs/<name>-<time>."""
    seed: int = 0
    steps: int = Field(default=30, ge=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where trainer and engines run. auto: cuda where NVIDIA GPUs are seen, else cpu. cuda without GPUs is an error."""
    stall_s: float = Field(default=600.0, gt=0)
    """No progress for this long: dump all stacks, say who waits for whom, exit. A group that takes its whole
    rollout.trajectory_timeout_s is no stall, so this should be longer."""
    cache_dir: str = "runs/cache"
    """Cold-started models, keyed by content hash."""
    ray_address: str | None = None
    """An existing Ray cluster; None: a local instance, started and stopped by the run."""


class CheckpointConfig(StrictModel):
    every: int = Field(default=10, ge=1)
    keep: int = Field(default=2, ge=1)


class Recipe(StrictModel):
    run: RunConfig = RunConfig()
    resume: Literal["never", "auto", "must"] = "never"
    """auto: go on from the newest checkpoint in run.dir if there is one."""
    model: ModelConfig
    sandbox: SandboxConfig = SandboxConfig()
    tasks: TasksConfig
    sft: SftConfig | None = None
    rollout: RolloutConfig = RolloutConfig()
    inference: InferenceConfig = InferenceConfig()
    buffer: BufferConfig = BufferConfig()
    rewards: RewardConfig = RewardConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    trainer: TrainerConfig
    weight_sync: WeightSyncConfig = WeightSyncConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    wandb: WandbConfig = WandbConfig()
