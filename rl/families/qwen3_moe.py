"""Qwen3's models with routed experts: softmax routing, no shared experts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rl.families import experts
from rl.families.family import Family

if TYPE_CHECKING:
    from torch import Tensor

_ROUTER = {".mlp.router.gate.weight": ".mlp.gate.weight"}


class Qwen3Moe(Family):
    """The family `qwen3_moe`."""

    model_types = ("qwen3_moe",)
    autoep_preset = "qwen3_moe"

    def experts(self, model_config: Mapping[str, Any]) -> int:
        # Published files use num_experts; files that transformers 5 saves use num_local_experts.
        return int(model_config.get("num_experts") or model_config.get("num_local_experts") or 0)

    def stored_parts(self, model_name: str, full: Tensor) -> Iterator[tuple[str, Tensor]]:
        return experts.stored_parts(model_name, full)

    def checkpoint_name(self, engine_name: str) -> str:
        return experts.renamed(engine_name, _ROUTER)

    def expert_pattern(self, engine_name: str) -> str | None:
        return experts.expert_pattern(engine_name)
