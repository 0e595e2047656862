"""RMSNorm on CPU by vLLM's compiled kernels. In eager mode vLLM 0.32 takes five operations of PyTorch for one, which
at small batches is a tenth of a decoding step.

Importing this registers them with vLLM under the name PROVIDER; `ir_op_priority` of its arguments selects them.
tests/rollout/cpu/test_kernels.py compares them with vLLM's own.
"""

from __future__ import annotations

import torch
from torch import Tensor
from vllm import ir
from vllm.platforms import current_platform

PROVIDER = "sluice_cpu"
PRIORITY = {"rms_norm": [PROVIDER], "fused_add_rms_norm": [PROVIDER]}


def _plain(x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None) -> bool:
    return variance_size is None and weight is not None and weight.dtype == x.dtype


def _plain_and_contiguous(
    x: Tensor, x_residual: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> bool:
    return _plain(x, weight, epsilon, variance_size) and x.is_contiguous() and x_residual.is_contiguous()


def rms_norm(x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None) -> Tensor:
    x = x.contiguous()
    normed = torch.empty_like(x)
    torch.ops._C.rms_norm(normed, x, weight, epsilon)
    return normed


def fused_add_rms_norm(
    x: Tensor, x_residual: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> tuple[Tensor, Tensor]:
    torch.ops._C.fused_add_rms_norm(x, x_residual, weight, epsilon)
    return x, x_residual


if PROVIDER not in ir.ops.rms_norm.impls:
    on_cpu = current_platform.is_cpu()
    ir.ops.rms_norm.register_impl(PROVIDER, supports_args=_plain, supported=on_cpu)(rms_norm)
    ir.ops.fused_add_rms_norm.register_impl(
        PROVIDER, supports_args=_plain_and_contiguous, supported=on_cpu, inplace=True
    )(fused_add_rms_norm)
