"""Adapters on CPU: each token gets its own adapter's output, as vLLM's own code computes it."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm")

import torch
from torch import Tensor
from vllm.lora.layers import LoRAMapping
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

from rollout.lora import cpu

pytestmark = [pytest.mark.slow]

SLOTS, RANK, INPUTS, WIDTHS = 3, 4, 16, (8, 4, 4)


def wrapper(of_tokens: list[int]) -> PunicaWrapperCPU:
    """A wrapper for a batch whose tokens use these slots; -1: none."""
    made = PunicaWrapperCPU(64, 8, "cpu")
    ids = tuple(slot + 1 for slot in of_tokens)
    made.update_metadata(LoRAMapping(ids, ids, is_prefill=True), [1, 2, 3], SLOTS + 1, 100)
    return made


def matrices() -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(0)
    a = tuple(torch.randn(SLOTS, 1, RANK, INPUTS, generator=generator) for _ in WIDTHS)
    b = tuple(torch.randn(SLOTS, 1, width, RANK, generator=generator) for width in WIDTHS)
    return a, b


@pytest.mark.parametrize("of_tokens", [[0] * 5, [1, 1, 0, 2, 1], [2, -1, 0, -1, 2], [-1] * 5])
def test_every_token_gets_the_output_of_its_own_adapter(of_tokens: list[int]) -> None:
    x = torch.randn(5, INPUTS, generator=torch.Generator().manual_seed(1))
    a, b = matrices()
    y = torch.ones(5, sum(WIDTHS))
    wrapper(of_tokens).add_lora_linear(y, x, a, b, 0.5, WIDTHS)
    for token, slot in enumerate(of_tokens):
        own = torch.cat([b[i][slot, 0] @ (a[i][slot, 0] @ x[token]) for i in range(len(WIDTHS))])
        torch.testing.assert_close(y[token], 1 + 0.5 * own if slot >= 0 else torch.ones(sum(WIDTHS)))


def test_it_agrees_with_vllms_own_and_is_tried_with_this_vllm() -> None:
    assert PunicaWrapperCPU.add_lora_linear is cpu.add_lora_linear, "try it with this vLLM, and set TRIED_WITH"
    x = torch.randn(6, INPUTS, generator=torch.Generator().manual_seed(1))
    a, b = matrices()
    ours, theirs = torch.zeros(6, sum(WIDTHS)), torch.zeros(6, sum(WIDTHS))
    made = wrapper([0, 0, 2, 1, 1, 1])
    made.add_lora_linear(ours, x, a, b, 1.0, WIDTHS)
    buffers = tuple(torch.zeros(6, RANK) for _ in WIDTHS)
    made.add_shrink(buffers, x, a, 1.0)
    made.add_expand(theirs, buffers, b, WIDTHS)
    torch.testing.assert_close(ours, theirs)
