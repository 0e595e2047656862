"""The norm of a large gradient is exact, which torch's float32 norm on CPU is not."""

from __future__ import annotations

import torch

from rl.zero.clipping import global_norm


def test_the_norm_of_a_large_gradient() -> None:
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.zeros(size)) for size in (8_000_001, 3, 1)]
    for parameter in parameters[:2]:
        parameter.grad = torch.randn(parameter.shape)
    exact = torch.cat([p.grad for p in parameters[:2] if p.grad is not None]).double().norm().item()
    assert abs(global_norm(parameters) / exact - 1) < 1e-6
    assert global_norm(parameters[2:]) == 0.0
