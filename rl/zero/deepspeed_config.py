"""The DeepSpeed configuration of the learner: ZeRO, AutoEP, AdamW, one accumulation window per optimizer step.

Owns the mapping from `trainer.*` to DeepSpeed's keys. `trainer.deepspeed` is merged over the result. If it sets a key
that another setting owns, that is an error which names the setting.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from rewards.extension import nearest
from rl.families.family import Family
from rl.learner.config import OptimizerConfig, TrainerConfig

OWNED = {
    "train_batch_size": "trainer.token_budget and trainer.groups_per_step",
    "train_micro_batch_size_per_gpu": "trainer.token_budget",
    "gradient_accumulation_steps": "the number of micro-batches of each step",
    "managed_gradient_accumulation": "the learner, which marks the end of each step itself",
    "gradient_clipping": "trainer.optimizer.clip_norm",
    "optimizer": "trainer.optimizer",
    "scheduler": "trainer.optimizer.warmup_steps",
    "bf16.enabled": "model.dtype",
    "fp16": "model.dtype",
    "zero_optimization.stage": "trainer.zero_stage",
    "expert_parallel.enabled": "trainer.expert_parallel",
    "expert_parallel.autoep_size": "trainer.expert_parallel",
    "expert_parallel.preset_model": "the model's architecture",
}

REDUCE_BUCKET = 50_000_000
"""Elements of the buffer in which ZeRO puts gradients together for a message. There is a second one as large while they
travel. DeepSpeed's own 500 million would be 4 GB of float32 in every rank, whatever the size of the model."""


def deepspeed_config(
    trainer: TrainerConfig, optimizer: OptimizerConfig, family: Family, experts: int, dtype: str, device: str
) -> dict[str, Any]:
    """The configuration for `deepspeed.initialize`.

    Args:
        experts: routed experts of a MoE layer, 0 for a dense model.

    Raises:
        ValueError: `trainer.deepspeed` sets a key that another setting owns, or `trainer.expert_parallel` does not
            fit the model or the ranks.
    """
    stage = zero_stage(trainer, dtype)
    check_expert_parallel(trainer, experts)
    refuse_owned(trainer.deepspeed)
    offload = "offload_optimizer" in trainer.deepspeed.get("zero_optimization", {})
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        # The number of micro-batches differs from step to step; `engine.step()` ends the accumulation.
        "managed_gradient_accumulation": False,
        # Without ZeRO the norm is ours (rl.zero.clipping), and is wanted even if nothing is clipped.
        "gradient_clipping": optimizer.clip_norm if stage else optimizer.clip_norm or math.inf,
        "steps_per_print": 1_000_000_000,
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": optimizer.lr,
                "betas": list(optimizer.betas),
                "eps": optimizer.eps,
                "weight_decay": optimizer.weight_decay,
                # PyTorch's AdamW needs no compiler on the machine. Offloaded states need DeepSpeed's CPU kernel.
                "torch_adam": not offload,
                # One pass over each parameter and its states; PyTorch's own choice on a CPU makes one an operation.
                **({} if offload else {"fused": True}),
            },
        },
        "bf16": {"enabled": dtype == "bfloat16"},
        "zero_optimization": _zero(stage, device),
    }
    if dtype == "bfloat16":
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    if experts:
        config["expert_parallel"] = {
            "enabled": True,
            "autoep_size": trainer.expert_parallel,
            "preset_model": family.autoep_preset,
        }
    return _merge(config, trainer.deepspeed)


def zero_stage(trainer: TrainerConfig, dtype: str) -> int:
    """The ZeRO stage that `trainer.zero_stage` means. With settings of `trainer.deepspeed.zero_optimization`, which are
    made for stage 3 (offloading is among them), `auto` is 3.

    Raises:
        ValueError: stage 0 with bfloat16, or with settings of ZeRO's.
    """
    if trainer.zero_stage == 0 and dtype != "float32":
        raise ValueError(
            f"trainer.zero_stage=0 with model.dtype={dtype}: DeepSpeed would sum the gradients of micro-batches in "
            f"{dtype}; set trainer.zero_stage to 2 or 3, or model.dtype to float32"
        )
    if trainer.zero_stage == 0 and trainer.deepspeed.get("zero_optimization"):
        raise ValueError(
            "trainer.zero_stage=0 with settings of trainer.deepspeed.zero_optimization, which would have no effect: "
            "remove them, or set the stage to 2 or 3"
        )
    if trainer.zero_stage != "auto":
        return trainer.zero_stage
    if trainer.ranks > 1 or trainer.deepspeed.get("zero_optimization"):
        return 3
    return 0 if dtype == "float32" else 2


def refuse_owned(overrides: dict[str, Any]) -> None:
    """Raise ValueError for a key of `trainer.deepspeed` that another setting owns, naming that setting."""
    for path in _paths(overrides):
        for owned, owner in OWNED.items():
            if path == owned or path.startswith(owned + ".") or owned.startswith(path + "."):
                raise ValueError(f"trainer.deepspeed.{path} is set by {owner}; remove it")


def refuse_unknown(overrides: dict[str, Any], known: Collection[str]) -> None:
    """Raise ValueError for a section of `trainer.deepspeed`, or a key of its zero_optimization, that DeepSpeed, which
    has the settings `known`, would ignore."""
    zero = overrides.get("zero_optimization")
    paths = {name: name for name in overrides}
    paths |= {f"zero_optimization.{name}": name for name in (zero if isinstance(zero, dict) else ())}
    for path, name in paths.items():
        if known and name not in known:
            raise ValueError(f"trainer.deepspeed.{path}: DeepSpeed has no such setting{nearest(name, [*known])}")


def _zero(stage: int, device: str) -> dict[str, Any]:
    zero: dict[str, Any] = {
        "stage": stage,
        "contiguous_gradients": True,
        "reduce_scatter": True,
        "reduce_bucket_size": REDUCE_BUCKET,
    }
    if device == "cpu":
        zero.update(overlap_comm=False)
    return zero


def check_expert_parallel(trainer: TrainerConfig, experts: int) -> None:
    """Raise ValueError if `trainer.expert_parallel` does not fit the model's experts or the ranks."""
    if not experts:
        if trainer.expert_parallel != 1:
            raise ValueError(
                f"trainer.expert_parallel={trainer.expert_parallel}, but the model has no experts; set it to 1"
            )
    elif trainer.ranks % trainer.expert_parallel or experts % trainer.expert_parallel:
        raise ValueError(
            f"trainer.expert_parallel={trainer.expert_parallel} must divide "
            f"trainer.ranks={trainer.ranks} and the model's {experts} experts"
        )


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _paths(tree: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted paths of the leaves; an empty dictionary is a leaf."""
    paths = []
    for key, value in tree.items():
        path = f"{prefix}{key}"
        paths += _paths(value, path + ".") if isinstance(value, dict) and value else [path]
    return paths
