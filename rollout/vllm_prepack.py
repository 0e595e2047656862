"""A workaround for vLLM 0.32 on CPU: after a weight reload the experts of a MoE layer are silently wrong.

`UnquantizedFusedMoEMethod._setup_kernel` packs the expert weights into the CPU kernel's layout only while `moe_kernel`
is None, so on a reload the plain layout is copied over the packed one. Forgetting the kernel before the reload makes
the next load build and pack it again. tests/rollout/test_inference_prepack.py fails when vLLM no longer needs this;
then delete this module and its one call in `rollout.vllm_reload`.
"""

from __future__ import annotations

from collections.abc import Iterable

import vllm
from torch import nn
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod
from vllm.platforms import current_platform

TRIED_WITH = "0.32.0"


def forget_packed_experts(modules: Iterable[nn.Module]) -> int:
    """Make the coming reload pack the experts among `modules` anew. Returns their number; 0 where not on CPU.

    Raises:
        RuntimeError: the model has experts, and this vLLM is not the one that this was tried with.
    """
    if not current_platform.is_cpu():
        return 0
    # A quant method is itself a module (vLLM's CustomOp), so it is among the model's.
    methods = [module for module in modules if isinstance(module, UnquantizedFusedMoEMethod)]
    if methods:
        check_version()
    for method in methods:
        method.moe_kernel = None
    return len(methods)


def check_version() -> None:
    """Raise RuntimeError under a vLLM that this was not tried with."""
    if not vllm.__version__.startswith(TRIED_WITH):
        raise RuntimeError(
            f"vLLM {vllm.__version__}: reloading MoE experts on CPU was tried with {TRIED_WITH} only. Run "
            "tests/rollout/test_inference_prepack.py and set rollout.vllm_prepack.TRIED_WITH when it passes"
        )
