"""Reads back the weights that a vLLM model computes with, fused and packed as they are, in the form of a checkpoint.

On CPU a linear layer keeps only a packed copy of its weight: the parameter has no elements, and a head tied to the
embedding has none of its own. So that weight is read through the layer: applied to the identity matrix, the layer
returns its transposed weight. Experts are packed by an operation of vLLM's for each expert; what was sent is packed in
the same way and compared. vLLM's own checksums see none of this, and vLLM has left old packed weights in use after a
reload (rollout.cpu.prepack).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from vllm._custom_ops import cpu_prepack_moe_weight
from vllm.lora.layers import BaseLayerWithLoRA
from vllm.model_executor.layers.linear import LinearBase, RowParallelLinear
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.platforms import current_platform

from rollout.transfer.bucket import digest
from rollout.transfer.update import Findings

_SUFFIX = ".cpu_linear"
_FUSED = {
    "q_proj": ("qkv_proj", 0),
    "k_proj": ("qkv_proj", 1),
    "v_proj": ("qkv_proj", 2),
    "gate_proj": ("gate_up_proj", 0),
    "up_proj": ("gate_up_proj", 1),
}
"""Layers of a checkpoint that vLLM fuses: the name of the fused one, and the place in it."""
_EXPERT = re.compile(r"(?P<experts>.+\.experts)\.(?P<number>\d+)\.(?P<matrix>gate_proj|up_proj|down_proj)\.weight")


class ReadBack:
    """Compares a model on one worker, without tensor parallelism, with tensors in the form of a checkpoint, part by
    part."""

    def __init__(self, model: nn.Module) -> None:
        self.found = Findings()
        # With adapters a layer lies inside another, which has its attributes and takes its name.
        self._modules = {name: getattr(each, "base_layer", each) for name, each in model.named_modules()}
        self._halves: dict[str, tuple[str, Tensor]] = {}
        self._last: tuple[nn.Module, Tensor] | None = None

    @torch.inference_mode()
    def compare(self, tensors: Sequence[tuple[str, Tensor]]) -> None:
        """Compare some tensors, whose values may be gone after the call."""
        for name, sent in tensors:
            try:
                names, same = self._compared(name, sent)
            except (KeyError, AttributeError, IndexError, TypeError):
                self.found.unread.append(name)
                continue
            if same:
                self.found.same += len(names)
            else:
                self.found.differ += names

    def _compared(self, name: str, sent: Tensor) -> tuple[list[str], bool]:
        """The tensors that were compared now, none if another one is needed for that, and whether they are the same."""
        expert = _EXPERT.fullmatch(name)
        return ([name], self._same(name, sent)) if expert is None else self._expert(name, expert, sent)

    def _same(self, name: str, sent: Tensor) -> bool:
        """Whether everything that computes with a tensor has its values."""
        path, _, leaf = name.rpartition(".")
        parent, _, last = path.rpartition(".")
        fused, place = _FUSED.get(last, ("", 0))
        if f"{parent}.{fused}" in self._modules:
            module = self._modules[f"{parent}.{fused}"]
            first = sum(module.output_sizes[:place])
            rows = slice(first, first + module.output_sizes[place])
        else:
            module = self._modules[path]
            rows = slice(len(sent) if isinstance(module, VocabParallelEmbedding) else None)  # vLLM pads vocabularies
        found = [_equal(held[rows], sent) for held in self._held(module, leaf)]
        if not found:
            raise KeyError(name)
        return all(found)

    def _held(self, module: nn.Module, leaf: str) -> Iterator[Tensor]:
        """What a module computes with under that name. An embedding and a packed head tied to it are two."""
        plain: Tensor = getattr(module, leaf)
        if leaf != "weight" or plain.numel():
            yield plain
        if leaf != "weight":
            return
        for each in dict.fromkeys(self._modules.values()):
            tied = isinstance(each, VocabParallelEmbedding) and each.weight is plain
            if (each is module or (tied and plain.numel())) and hasattr(each, "cpu_linear"):
                yield self._packed(each)

    def _packed(self, layer: nn.Module) -> Tensor:
        """A packed layer's weight. The last one is kept, since fused tensors are compared one after the other."""
        if self._last is None or self._last[0] is not layer:
            self._last = layer, _through(layer).T
        return self._last[1]

    def _expert(self, name: str, expert: re.Match[str], sent: Tensor) -> tuple[list[str], bool]:
        """Compare an expert's matrix. A half of its first one is kept until the other comes: they are packed
        together."""
        layer, number = self._modules[f"{expert['experts']}.routed_experts"], int(expert["number"])
        own = f"{expert['experts']}.{number}"
        if expert["matrix"] == "down_proj":
            held: Tensor = layer.w2_weight[number]
            return [name], _equal_packed(layer, held, functional.pad(sent, (0, held.shape[1] - sent.shape[1])))
        if own not in self._halves:
            self._halves[own] = name, sent.clone()
            return [], True
        first, other = self._halves.pop(own)
        held = layer.w13_weight[number]
        halves = (other, sent) if expert["matrix"] == "up_proj" else (sent, other)
        missing = held.shape[0] // 2 - len(sent)
        whole = torch.cat([functional.pad(half, (0, 0, 0, missing)) for half in halves])
        return [first, name], _equal_packed(layer, held, whole)


def packed_digests(model: nn.Module) -> dict[str, str]:
    """Return the digest of each packed weight by module name and suffix; none where vLLM does not run on CPU."""
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
            yield name, _through(layer)


def _through(layer: nn.Module) -> Tensor:
    """A packed layer's transposed weight, [inputs, outputs]."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return layer.cpu_linear(torch.eye(_inputs(layer), dtype=weight.dtype), weight, None)  # type: ignore[operator]


def _inputs(layer: nn.Module) -> int:
    if isinstance(layer, VocabParallelEmbedding):
        return layer.embedding_dim
    assert isinstance(layer, LinearBase)
    return layer.input_size_per_partition if isinstance(layer, RowParallelLinear) else layer.input_size


def _equal(held: Tensor, sent: Tensor) -> bool:
    return torch.equal(held, sent.to(held.dtype))


def _equal_packed(layer: nn.Module, held: Tensor, sent: Tensor) -> bool:
    """Whether an expert holds a matrix, packed as vLLM's kernel for this machine wants it, or as it is."""
    kernel = getattr(layer.quant_method.moe_kernel, "fused_experts", None)  # type: ignore[union-attr]
    isa = getattr(kernel, "isa", None)
    if isa is not None and not getattr(kernel, "_use_zentorch", False):
        sent = cpu_prepack_moe_weight(sent[None].to(held.dtype), isa)[0]
    return _equal(held, sent)
