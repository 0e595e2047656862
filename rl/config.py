"""The whole recipe as one tree of strict typed models. rl.recipe reads YAML into it; nothing here imports torch."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from rewards.sandbox.config import SandboxConfig
from rewards.strict import StrictModel
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


class ModelConfig(StrictModel):
    """`model: PATH` is short for `model: {path: PATH}`."""

    shorthand: ClassVar[str | None] = "path"

    path: str
    """A local directory or Hugging Face name. A directory with a config.json but no weights starts from random ones."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    renderer: Literal["glm-4.5"] = "glm-4.5"
    """The chat format (rollout.chat.glm45)."""

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:
        return {cls.shorthand: value} if isinstance(value, str) else value


Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(StrictModel):
    lr: float = Field(ge=0)
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    warmup_steps: int = Field(default=0, ge=0)
    decay: Literal["none", "linear"] = "none"
    """After the warm-up: constant, or linear to zero at the stage's last step."""
    clip_norm: float = Field(default=1.0, gt=0)


class SftConfig(StrictModel):
    """A supervised stage before reinforcement learning. Its result is cached by content hash."""

    dataset: str
    """jsonl / parquet path or Hugging Face dataset with a `messages` (and optional `tools`) column, or
    `oracle`: demonstrations of the recipe's own environments by their scripted oracle policies."""
    rows: int = Field(default=2000, ge=1)
    steps: int = Field(default=100, ge=1)
    tokens_per_step: int = Field(default=8192, ge=16)
    optimizer: OptimizerConfig


class TrainerConfig(StrictModel):
    ranks: int = Field(default=2, ge=1)
    expert_parallel: int = Field(default=1, ge=1)
    groups_per_step: int = Field(default=8, ge=1)
    token_budget: int = Field(default=8192, ge=16)
    """Tokens of one packed micro-batch on one rank."""
    logprob_chunk: int = Field(default=1024, ge=1)
    """Tokens whose logits exist at once."""
    optimizer: OptimizerConfig
    gradient_checkpointing: bool = False
    cpu_threads: int = Field(default=1, ge=1)
    timeout_s: float = Field(default=600.0, gt=0)
    """Deadline of a collective."""
    deepspeed: dict[str, Any] = Field(default_factory=dict)
    """Merged over the DeepSpeed configuration that the keys above make."""


class AlgorithmConfig(StrictModel):
    name: Literal["grpo", "reinforce"] = "grpo"
    clip_low: float = Field(default=0.2, gt=0, lt=1)
    clip_high: float = Field(default=0.28, gt=0)
    normalize_std: bool = True


class RewardConfig(StrictModel):
    weights: dict[str, float] = Field(default_factory=dict)
    """Weight of each named reward part (rewards.compose); a part not named here weighs 1."""


class CheckpointConfig(StrictModel):
    every: int = Field(default=10, ge=1)
    keep: int = Field(default=2, ge=1)


class WandbConfig(StrictModel):
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto: online when WANDB_API_KEY is set, else offline."""
    project: str = "sluice"
    entity: str | None = None
    group: str | None = None


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
