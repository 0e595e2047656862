"""The base of families with routed experts, whose tensors have the same names in all of them so far.

transformers fuses a layer's experts into `mlp.experts.gate_up_proj` [experts, 2 * width, hidden] and
`mlp.experts.down_proj` [experts, hidden, width]. AutoEP holds them as `mlp.experts.w1`, `w2` and `w3` [experts, …].
Checkpoints hold `mlp.experts.{i}.gate_proj|down_proj|up_proj.weight`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from rl.families.family import Family

if TYPE_CHECKING:
    from torch import Tensor

_FUSED = re.compile(r"(?P<experts>.*\.mlp\.experts)\.(?P<matrix>gate_up_proj|down_proj)")
_FUSED_PROJECTIONS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
_AUTOEP = re.compile(r"(?P<experts>.*\.mlp\.experts)\.(?P<matrix>w[123])")
_AUTOEP_PROJECTION = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}


class MixtureOfExperts(Family):
    """A decoder with routed experts. A family of this kind says how many there are and which preset splits them."""

    router_names: Mapping[str, str] = {}
    """The endings of the router's names in an engine, and those in a checkpoint."""

    def stored_parts(self, model_name: str, full: Tensor) -> Iterator[tuple[str, Tensor]]:
        fused = _FUSED.fullmatch(model_name)
        if fused is None:
            yield model_name, full
            return
        projections = _FUSED_PROJECTIONS[fused["matrix"]]
        for i, expert in enumerate(full.unbind(0)):
            for projection, part in zip(projections, expert.chunk(len(projections)), strict=True):
                yield f"{fused['experts']}.{i}.{projection}.weight", part

    def checkpoint_name(self, engine_name: str) -> str:
        for ending, stored in self.router_names.items():
            if engine_name.endswith(ending):
                return engine_name.removesuffix(ending) + stored
        return engine_name

    def expert_pattern(self, engine_name: str) -> str | None:
        expert = _AUTOEP.fullmatch(engine_name)
        return expert and f"{expert['experts']}.{{}}.{_AUTOEP_PROJECTION[expert['matrix']]}.weight"
