"""Clip the gradient of an engine without ZeRO, where DeepSpeed 0.19 takes the mean of the ranks' norms.

That mean is wrong where ranks hold different experts, and DeepSpeed does not report it. The norms of the other stages
are right. tests/rl/learner/test_learner.py fails without this module.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from deepspeed.utils import groups
from torch import Tensor

PART = 1 << 16
"""Elements whose squares are added in float32. On CPU torch 2.13 adds all of a tensor in a row: the norm of 28 million
normal numbers comes out 0.16 % too small."""


def clip_as_a_whole(engine: Any) -> None:
    """Make a stage-0 engine clip by the norm of the whole gradient, and report that norm."""

    def clip() -> None:
        norm = global_norm(list(engine.module.parameters()))
        engine._global_grad_norm = norm
        bound = engine.gradient_clipping()
        if math.isfinite(bound) and norm > bound:
            torch._foreach_mul_([p.grad for p in engine.module.parameters() if p.grad is not None], bound / norm)

    engine.clip_fp32_gradients = clip


def global_norm(parameters: Sequence[torch.nn.Parameter]) -> float:
    """The norm of the gradient over all parameters, with the experts of all ranks. A collective."""
    found = [p for p in parameters if p.grad is not None]
    total = _squares([p for p in found if not _group(p)])
    for name in sorted({*map(_group, found)} - {""}):
        shard = _squares([p for p in found if _group(p) == name])
        torch.distributed.all_reduce(shard, group=groups._get_expert_parallel_group(name))
        total = total + shard
    return math.sqrt(total.item())


def _group(parameter: torch.nn.Parameter) -> str:
    """The name of the expert group among which a parameter's experts are divided; empty if every rank has all of it."""
    return "" if getattr(parameter, "allreduce", True) else str(parameter.group_name)  # type: ignore[attr-defined]


def _squares(parameters: Sequence[torch.nn.Parameter]) -> Tensor:
    if not parameters:
        return torch.zeros((), dtype=torch.float64)
    gradients = [parameter.grad.flatten() for parameter in parameters if parameter.grad is not None]
    parts = [part for gradient in gradients for part in gradient.split(PART)]
    return torch.stack(torch._foreach_norm(parts)).double().square().sum()
