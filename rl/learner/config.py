"""The recipe's `model:` and `trainer:` sections."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, SerializeAsAny

from rewards.strict import StrictModel
from rl.families.config import FamilySettings
from rollout.chat.config import RendererSettings


class ModelConfig(StrictModel):
    """`model: PATH` is short for `model: {path: PATH}`."""

    shorthand: ClassVar[str | None] = "path"

    path: str
    """A local directory or Hugging Face name. A directory with a config.json but no weights starts from random ones."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    renderer: SerializeAsAny[RendererSettings] | None = None
    """The chat format (rollout.chat); null: the one of the model's family."""
    family: SerializeAsAny[FamilySettings] | None = None
    """How the model's tensors are named and its experts split (rl.families); null: by the model_type of its config."""


Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(StrictModel):
    lr: float = Field(ge=0)
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    warmup_steps: int = Field(default=0, ge=0)
    decay: Literal["none", "linear"] = "none"
    """After the warm-up: constant, or linear to zero at the stage's last step."""
    clip_norm: float = Field(default=1.0, ge=0)
    """Of the whole gradient; 0: no clipping."""


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
