"""How evenly the tokens of a step are spread over experts.

AutoEP counts the tokens that it computes. Those of a shared prefix would count once there, however many rows have them,
and fillers would count, too. So the routers' choices are counted here, each token as often as rows have it.
"""

from __future__ import annotations

from typing import Any

import torch
from deepspeed.module_inject.auto_ep_layer import AutoEPMoELayer
from torch import Tensor, nn


class ExpertLoad:
    """Counts tokens per expert in every MoE layer, from `reset` on. Set `multiplicity` [T] before each forward."""

    def __init__(self, layers: list[AutoEPMoELayer]) -> None:
        self.multiplicity: Tensor | None = None
        self._loads = [torch.zeros(layer.router.num_experts, dtype=torch.float64) for layer in layers]
        for number, layer in enumerate(layers):
            layer.router.register_forward_hook(self._counter(number))

    def reset(self) -> None:
        for load in self._loads:
            load.zero_()

    def max_over_mean(self) -> dict[str, float]:
        """The load of the busiest expert over the mean load in the worst layer, over all ranks, as a metric. Empty
        without MoE layers. A collective."""
        if not self._loads:
            return {}
        load = torch.stack(self._loads)
        torch.distributed.all_reduce(load)
        ratio = load.max(dim=1).values / load.mean(dim=1).clamp_min(torch.finfo(load.dtype).tiny)
        return {"moe/load_max_over_mean": ratio.max().item()}

    def _counter(self, number: int) -> Any:
        def count(router: nn.Module, inputs: Any, output: tuple[Tensor, Tensor, Tensor]) -> None:
            assert self.multiplicity is not None, "it is set before each forward"
            _, chosen, _ = output  # [T, experts a token]
            times = self.multiplicity.to(torch.float64).repeat_interleave(chosen.shape[1])
            load = self._loads[number] = self._loads[number].to(chosen.device)
            load.scatter_add_(0, chosen.reshape(-1).long(), times)

        return count
