"""Digests of weights that vLLM's own checksums can't see: on CPU a linear layer keeps only a packed copy of its weight.

`compute_weight_checksums` hashes parameters. The parameter of a packed layer has no elements, and a head tied to the
embedding has none of its own. So the weight is read back through the layer: applied to the identity matrix, the layer
returns its transposed weight.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from vllm.lora.layers import BaseLayerWithLoRA
from vllm.model_executor.layers.linear import LinearBase, RowParallelLinear
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.platforms import current_platform

from rollout.transfer.bucket import digest

_SUFFIX = ".cpu_linear"


def packed_digests(model: nn.Module) -> dict[str, str]:
    """Return the sha256 of each packed weight by module name and suffix; none where vLLM does not run on CPU."""
    if not current_platform.is_cpu():
        return {}
    return {name + _SUFFIX: digest(weight) for name, weight in _packed_weights(model)}


@torch.inference_mode()
def _packed_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the name of each packed layer and its transposed weight, [inputs, outputs]."""
    for name, layer in model.named_modules():
        if isinstance(layer, BaseLayerWithLoRA):  # it has the attributes of the layer inside it, which comes, too
            continue
        if hasattr(layer, "cpu_linear") and not layer.weight.is_meta:
            yield name, layer.cpu_linear(torch.eye(_inputs(layer), dtype=layer.weight.dtype), layer.weight, None)


def _inputs(layer: nn.Module) -> int:
    if isinstance(layer, VocabParallelEmbedding):
        return layer.embedding_dim
    assert isinstance(layer, LinearBase)
    return layer.input_size_per_partition if isinstance(layer, RowParallelLinear) else layer.input_size
