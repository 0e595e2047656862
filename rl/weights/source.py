"""Stream the DeepSpeed engine's weights under Hugging Face checkpoint names, in buckets of bounded size.

Owns the conversion of ZeRO-3 partitions and expert shards to the full tensors of an inference engine or a checkpoint.
It never holds the model twice: at most one bucket of full tensors exists at a time. Its size counts full elements (a
partitioned parameter's own count is a fraction of them). Every rank must walk the buckets, since gathering one is a
collective. Every rank gets the same full tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import deepspeed
import torch
from deepspeed.utils import groups
from peft.tuners.lora import LoraLayer
from torch import nn

from rl.families.family import Family
from rl.weights.adapters import adapted_layers, adapter_name, checkpoint_name, merged, own_parameters
from rollout.types import WeightSpec


@dataclass(frozen=True, slots=True)
class _Piece:
    """A unit of gathering: a whole tensor under one name, or the local experts `start:stop` of every rank.

    `names` and `shape` are those of the gathered tensors. Experts are ordered by rank in the expert group, and within a
    rank by their local index. `adapted` is the layer whose adapter is merged into the tensor.
    """

    tensor: torch.Tensor
    names: tuple[str, ...]
    shape: tuple[int, ...]
    experts: slice | None = None
    adapted: LoraLayer | None = None

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All that must be whole before the piece can be read."""
        own = [self.tensor] if isinstance(self.tensor, nn.Parameter) else []
        return [*own, *(own_parameters(self.adapted) if self.adapted is not None else ())]

    @property
    def specs(self) -> list[WeightSpec]:
        dtype = str(self.tensor.dtype).removeprefix("torch.")
        return [WeightSpec(name=name, dtype=dtype, shape=self.shape) for name in self.names]

    @property
    def nbytes(self) -> int:
        return sum(spec.nbytes for spec in self.specs)


Part = Literal["merged", "base", "adapter"]
"""merged: all weights, with an adapter (if there is one) merged into them.  base: all weights as if there were no
adapter.  adapter: the adapter's own tensors, under the names of PEFT's files."""


class WeightSource:
    """Streams a part of the weights of a `PolicyModel` that DeepSpeed may have partitioned."""

    def __init__(self, module: nn.Module, family: Family, part: Part = "merged") -> None:
        self._tensors = _adapter_tensors(module) if part == "adapter" else _checkpoint_tensors(module)
        self._adapted = dict(adapted_layers(module)) if part == "merged" else {}
        self._family = family

    def manifest(self) -> list[WeightSpec]:
        """The name, dtype and full shape of every tensor that `buckets` yields. Local: no communication."""
        return [spec for piece in self._pieces(max_bytes=None) for spec in piece.specs]

    def plan(self, max_bytes: int) -> list[list[WeightSpec]]:
        """The tensors that each bucket of `buckets(max_bytes)` will hold. Local: no communication."""
        return [[spec for piece in bucket for spec in piece.specs] for bucket in self._plan(max_bytes)]

    def buckets(self, max_bytes: int) -> Iterator[list[tuple[str, torch.Tensor]]]:
        """Yield buckets of full tensors, each of at most `max_bytes`. A collective of all ranks.

        Only a bucket of a single piece that cannot be cut may be larger: one tensor, or one expert from each rank of
        the expert group. The tensors are valid until the next bucket is requested. They may alias live parameters: read
        or copy them, never write.
        """
        for bucket in self._plan(max_bytes):
            parameters = [parameter for piece in bucket for parameter in piece.parameters]
            with deepspeed.zero.GatheredParameters(parameters), torch.no_grad():
                full = [pair for piece in bucket for pair in _full_tensors(piece)]
                yield full
                full.clear()

    def _plan(self, max_bytes: int) -> list[list[_Piece]]:
        if max_bytes < 1:
            raise ValueError(f"max_bytes={max_bytes} must be at least 1")
        plan: list[list[_Piece]] = []
        room = 0
        for piece in self._pieces(max_bytes):
            if not plan or piece.nbytes > room:
                plan.append([])
                room = max_bytes
            plan[-1].append(piece)
            room -= piece.nbytes
        return plan

    def _pieces(self, max_bytes: int | None) -> Iterator[_Piece]:
        for name, tensor in self._tensors:
            layer = self._adapted.get(name)
            pieces = _pieces(checkpoint_name(name), tensor, self._family, max_bytes)
            yield from pieces if layer is None else (replace(piece, adapted=layer) for piece in pieces)


def _adapter_tensors(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    named = [(adapter_name(name), parameter) for name, parameter in module.named_parameters()]
    return [(name, parameter) for name, parameter in named if name is not None]


def _checkpoint_tensors(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """The parameters and persistent buffers, each once, without those of an adapter. Aliases (tied weights, AutoEP's
    second name of the router) are listed under their first name only."""
    persistent = set(module.state_dict(keep_vars=True))
    found: dict[str, torch.Tensor] = {n: p for n, p in module.named_parameters() if adapter_name(n) is None}
    found.update((name, buffer) for name, buffer in module.named_buffers() if name in persistent)
    return list(found.items())


def _pieces(name: str, tensor: torch.Tensor, family: Family, max_bytes: int | None) -> list[_Piece]:
    """Cut one engine tensor into pieces of at most `max_bytes`. Only experts can be cut, at expert boundaries."""
    shape = full_shape(tensor)
    pattern = family.expert_pattern(name)
    if pattern is None:
        return [_Piece(tensor, (family.checkpoint_name(name),), shape)]
    local = shape[0]
    ranks = groups._get_expert_parallel_world_size(tensor.group_name)  # type: ignore[attr-defined]
    group_bytes = ranks * tensor.element_size() * torch.Size(shape[1:]).numel()
    step = local if max_bytes is None else min(local, max(1, max_bytes // group_bytes))
    pieces = []
    for start in range(0, local, step):
        experts = slice(start, min(start + step, local))
        indices = [rank * local + i for rank in range(ranks) for i in range(experts.start, experts.stop)]
        pieces.append(_Piece(tensor, tuple(pattern.format(i) for i in indices), shape[1:], experts))
    return pieces


def full_shape(tensor: torch.Tensor) -> tuple[int, ...]:
    """The tensor's shape before ZeRO-3 partitioned it (`ds_shape`). For experts it counts only this rank's."""
    return tuple(tensor.ds_shape) if hasattr(tensor, "ds_shape") else tuple(tensor.shape)


def _full_tensors(piece: _Piece) -> list[tuple[str, torch.Tensor]]:
    """The full tensors of a piece by checkpoint name; experts are gathered over the expert group. Call this inside
    `GatheredParameters`."""
    if piece.adapted is not None:
        return [(piece.names[0], merged(piece.adapted, piece.tensor))]
    if piece.experts is None:
        return [(piece.names[0], piece.tensor.detach())]
    local = piece.tensor.detach()[piece.experts]
    group = groups._get_expert_parallel_group(piece.tensor.group_name)  # type: ignore[attr-defined]
    ranks = torch.distributed.get_world_size(group)
    if ranks > 1:
        gathered = local.new_empty((ranks * local.shape[0], *local.shape[1:]))
        torch.distributed.all_gather_single(gathered, local.contiguous(), group=group)
        local = gathered
    return list(zip(piece.names, local.unbind(0), strict=True))
