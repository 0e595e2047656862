"""The recipe's `model:` and `trainer:` sections."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, SerializeAsAny

from rewards.strict import StrictModel
from rl.families.config import FamilySettings
from rollout.chat.config import RendererSettings


class ModelConfig(StrictModel):
    """The policy's model. `model: PATH` is short for `model: {path: PATH}`."""

    shorthand: ClassVar[str | None] = "path"

    path: str
    """A local directory or Hugging Face name. A directory with a config.json but no weights means random weights."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    renderer: SerializeAsAny[RendererSettings] | None = None
    """The chat format (rollout.chat); null: that of the model's family."""
    family: SerializeAsAny[FamilySettings] | None = None
    """The model family (rl.families), which knows tensor names and experts; null: found by the config's model_type."""


Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(StrictModel):
    lr: float = Field(ge=0)
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    warmup_steps: int = Field(default=0, ge=0)
    decay: Literal["none", "linear"] = "none"
    """The learning rate after the warm-up. none: constant.  linear: falls to zero, reached after the last step."""
    clip_norm: float = Field(default=1.0, ge=0)
    """Upper bound on the norm of the whole gradient; 0: no clipping."""


class LoraConfig(StrictModel):
    """Train an adapter of low rank instead of the weights (Hu et al. 2021, arXiv:2106.09685). All of it is PEFT's."""

    rank: int = Field(default=16, ge=1, le=512)
    alpha: float = Field(default=32.0, gt=0)
    """The adapter's output is multiplied by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """The share of an adapter's inputs that are left out in training. The engine leaves out none, so with dropout the
    trainer's logprobs are not those of the tokens' sampling."""
    targets: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Names of the linear layers that get an adapter, or ends of their names (q_proj, self_attn.q_proj). null: all of
    attention, of dense feed-forward layers and of shared experts."""
    rslora: bool = False
    """Multiply by alpha / sqrt(rank) instead (Kalajdzievski 2023, arXiv:2312.03732)."""
    dora: bool = False
    """Train the magnitude of each output apart from its direction (Liu et al. 2024, arXiv:2402.09353)."""
    push: Literal["auto", "adapter", "merged"] = "auto"
    """What engines get. adapter: the adapter alone, and requests in flight go on with theirs.  merged: all weights with
    the adapter merged into them.  auto: adapter where vLLM can compute with it; merged for DoRA and for models with
    experts."""


class TrainerConfig(StrictModel):
    ranks: int = Field(default=2, ge=1)
    expert_parallel: int = Field(default=1, ge=1)
    zero_stage: Literal["auto", 0, 2, 3] = "auto"
    """What DeepSpeed ZeRO divides among the ranks. 3: weights, gradients and optimizer states.  2: gradients and
    optimizer states.  0: nothing, for float32 only.  auto: 3, but 0 (2 for bfloat16) where a single rank has nobody to
    divide with."""
    groups_per_step: int = Field(default=8, ge=1)
    token_budget: int = Field(default=8192, ge=16)
    """The most tokens in one packed micro-batch of one rank."""
    share_prefixes: bool = True
    """Compute the tokens that rows of a group begin with once for all of them in a micro-batch. The gradient is the
    same."""
    logprob_chunk: int = Field(default=1024, ge=1)
    """Tokens whose logits are in memory at once."""
    optimizer: OptimizerConfig
    gradient_checkpointing: bool = False
    cpu_threads: int = Field(default=1, ge=1)
    timeout_s: float = Field(default=600.0, gt=0)
    """Deadline of one collective operation among the ranks."""
    deepspeed: dict[str, Any] = Field(default_factory=dict)
    """DeepSpeed settings, merged over those that are derived from the other keys."""
