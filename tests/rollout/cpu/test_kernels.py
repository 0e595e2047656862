"""RMSNorm by vLLM's compiled kernels against vLLM's own formula in PyTorch. (Whole models are compared elsewhere.)"""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="module")
def kernels():
    import vllm._custom_ops  # noqa: F401 (loads the compiled kernels)

    from rollout.cpu import kernels

    return kernels


def drawn(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


CLOSE = {torch.float32: {"rtol": 1e-5, "atol": 1e-6}, torch.bfloat16: {"rtol": 2e-2, "atol": 2e-2}}
"""Two roundings of bfloat16, 8 bits each, in another order; float32 sums in another order."""


@pytest.mark.parametrize("dtype", CLOSE)
def test_rms_norm(kernels, dtype: torch.dtype) -> None:
    from vllm import ir

    own = ir.ops.rms_norm.impls["native"].impl_fn
    projected, weight = drawn(7, 160, dtype=dtype), drawn(32, dtype=dtype)
    heads = projected[:, 32:128].unflatten(1, (3, 32))  # a part of what one matrix gives, as for queries
    assert not heads.is_contiguous()
    torch.testing.assert_close(kernels.rms_norm(heads, weight, 1e-5), own(heads, weight, 1e-5), **CLOSE[dtype])


@pytest.mark.parametrize("dtype", CLOSE)
def test_fused_add_rms_norm(kernels, dtype: torch.dtype) -> None:
    from vllm import ir

    own = ir.ops.fused_add_rms_norm.impls["native"].impl_fn
    x, residual, weight = drawn(7, 96, dtype=dtype), drawn(7, 96, dtype=dtype) + 1, drawn(96, dtype=dtype)
    expected = own(x, residual, weight, 1e-5)
    for found, wanted in zip(
        kernels.fused_add_rms_norm(x.clone(), residual.clone(), weight, 1e-5), expected, strict=True
    ):
        torch.testing.assert_close(found, wanted, **CLOSE[dtype])


def test_what_the_kernels_do_not_compute_is_left_to_vllm(kernels) -> None:
    from vllm import ir

    x, weight = drawn(4, 96, dtype=torch.float32), drawn(96, dtype=torch.float32)
    norm, fused = (op.impls[kernels.PROVIDER] for op in (ir.ops.rms_norm, ir.ops.fused_add_rms_norm))
    assert norm.supports_args(x, weight, 1e-5) and fused.supports_args(x, x, weight, 1e-5)
    assert not norm.supports_args(x, None, 1e-5), "no weight"
    assert not norm.supports_args(x, weight.bfloat16(), 1e-5), "a weight of another type"
    assert not norm.supports_args(x, weight, 1e-5, 48), "a part of the features"
    assert not fused.supports_args(x, drawn(96, 4, dtype=torch.float32).T, weight, 1e-5), "not contiguous"
