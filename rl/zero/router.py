"""Compute router logits in float32 under a bfloat16 engine, as GLM-4.5's reference code does.

transformers (`Glm4MoeTopkRouter`) and vLLM (`GateLinear`) compute them in float32. The router of DeepSpeed 0.19's
AutoEP computes them in the parameters' type and converts afterwards. In bfloat16 some tokens would then go to other
experts here than in the inference engine. tests/rl/learner/test_learner.py fails without this module; remove it when
AutoEP computes them in float32, too.
"""

from __future__ import annotations

from types import MethodType

from deepspeed.module_inject.auto_ep_layer import AutoEPMoELayer
from torch import Tensor, nn


def route_in_float32(layers: list[AutoEPMoELayer]) -> None:
    """Make every layer's gate compute in float32; its parameter keeps its type."""
    for layer in layers:
        gate = layer.router.gate
        gate.forward = MethodType(_float32_linear, gate)  # set on the instance, so ZeRO's hooks still run around it


def _float32_linear(gate: nn.Linear, hidden: Tensor) -> Tensor:
    return nn.functional.linear(hidden.float(), gate.weight.float())
