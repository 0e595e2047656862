"""The tensor names of routed experts, which all families share so far.

transformers fuses a layer's experts into `mlp.experts.gate_up_proj` [experts, 2 * width, hidden] and
`mlp.experts.down_proj` [experts, hidden, width]. AutoEP holds them as `mlp.experts.w1`, `w2` and `w3` [experts, …].
Checkpoints hold `mlp.experts.{i}.gate_proj|down_proj|up_proj.weight`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_FUSED = re.compile(r"(?P<experts>.*\.mlp\.experts)\.(?P<matrix>gate_up_proj|down_proj)")
_FUSED_PROJECTIONS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
_AUTOEP = re.compile(r"(?P<experts>.*\.mlp\.experts)\.(?P<matrix>w[123])")
_AUTOEP_PROJECTION = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}


def stored_parts(model_name: str, full: Tensor) -> Iterator[tuple[str, Tensor]]:
    """See `Family.stored_parts`."""
    fused = _FUSED.fullmatch(model_name)
    if fused is None:
        yield model_name, full
        return
    projections = _FUSED_PROJECTIONS[fused["matrix"]]
    for i, expert in enumerate(full.unbind(0)):
        for projection, part in zip(projections, expert.chunk(len(projections)), strict=True):
            yield f"{fused['experts']}.{i}.{projection}.weight", part


def expert_pattern(engine_name: str) -> str | None:
    """See `Family.expert_pattern`."""
    expert = _AUTOEP.fullmatch(engine_name)
    return expert and f"{expert['experts']}.{{}}.{_AUTOEP_PROJECTION[expert['matrix']]}.weight"


def renamed(engine_name: str, names: dict[str, str]) -> str:
    """Replace the ending of `engine_name` if `names` has a replacement for it."""
    ending = next((ending for ending in names if engine_name.endswith(ending)), None)
    return engine_name if ending is None else engine_name.removesuffix(ending) + names[ending]
