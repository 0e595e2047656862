"""Adapters on CPU as ordinary matrix products.

vLLM 0.32 copies an adapter's matrices once for every token and multiplies each token by its own copy. A batch holds few
different adapters, so here the tokens of each are multiplied together. Import this in every worker process. It changes
nothing elsewhere than on CPU, and under a vLLM with which it was not tried.
"""

from __future__ import annotations

from typing import Any

import torch
import vllm
from torch import Tensor
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

TRIED_WITH = "0.32.0"
_update_metadata = PunicaWrapperCPU.update_metadata


def update_metadata(self: Any, *arguments: Any, **named: Any) -> None:
    """Take the slots of a batch's tokens, and sort the tokens by them."""
    _update_metadata(self, *arguments, **named)
    slots = self.token_lora_indices
    present = torch.unique(slots).tolist()
    everyone = slice(None)
    self.sluice_tokens = [
        (slot, everyone if len(present) == 1 else (slots == slot).nonzero()[:, 0]) for slot in present if slot >= 0
    ]


def add_lora_linear(
    self: Any,
    y: Tensor,
    x: Tensor,
    lora_a_stacked: tuple[Tensor, ...],
    lora_b_stacked: tuple[Tensor, ...],
    scale: float,
    output_slices: tuple[int, ...],
    **_: Any,
) -> None:
    """Add scale * B (A x) of each token's adapter to y [T, outputs], in place.

    Args:
        x: [T, inputs].
        lora_a_stacked, lora_b_stacked: for each slice of the outputs, A [slots, 1, rank, inputs] and B
            [slots, 1, outputs of the slice, rank].
    """
    x, y = x.view(-1, x.shape[-1]), y.view(-1, y.shape[-1])
    for slot, tokens in self.sluice_tokens:
        inputs, start = x[tokens], 0
        for a, b, width in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
            y[tokens, start : start + width] += (inputs @ a[slot, 0].T) @ b[slot, 0].T * scale
            start += width


if vllm.__version__.startswith(TRIED_WITH):  # under another one, vLLM's own code is right, too
    PunicaWrapperCPU.update_metadata = update_metadata
    PunicaWrapperCPU.add_lora_linear = add_lora_linear
