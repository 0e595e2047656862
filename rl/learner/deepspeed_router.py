"""Router logits in float32 under a bfloat16 engine, as GLM-4.5's own code has them.

transformers (`Glm4MoeTopkRouter`) and vLLM (`GateLinear`) compute them in float32. The router of DeepSpeed 0.19's
AutoEP computes them in the parameters' type and converts afterwards: in bfloat16 some tokens would go to other experts
here than in the inference engine. tests/rl/learner/test_learner.py fails without this; it can go when AutoEP does the
same.
"""

from __future__ import annotations

from types import MethodType

from deepspeed.module_inject.auto_ep_layer import AutoEPMoELayer
from torch import Tensor, nn

FLOAT32_ROUTERS = {"glm4_moe"}
"""Model types whose reference code computes router logits in float32. Qwen3 MoE's does not."""


def route_in_float32(layers: list[AutoEPMoELayer], model_type: str) -> None:
    """Make every layer's gate compute in float32; its parameter keeps its type. A no-op for other model types."""
    if model_type in FLOAT32_ROUTERS:
        for layer in layers:
            gate = layer.router.gate
            gate.forward = MethodType(
                _float32_linear, gate
            )  # an attribute of the instance: ZeRO's hooks stay around it


def _float32_linear(gate: nn.Linear, hidden: Tensor) -> Tensor:
    return nn.functional.linear(hidden.float(), gate.weight.float())
