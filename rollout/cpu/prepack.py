"""Workarounds for vLLM 0.32 on CPU, where a weight reload silently leaves wrong packed weights in use.

Experts of a MoE layer: `UnquantizedFusedMoEMethod._setup_kernel` packs them into the CPU kernel's layout only while
`moe_kernel` is None, so on a reload the plain layout is copied over the packed one. `forget_packed_experts` removes the
kernel before the reload, so that loading builds and packs it again.

A head that shares the embedding's weight: nothing is loaded into it, so its own packed copy keeps the old weight.
`repack_tied_heads` packs it again after the reload.

tests/rollout/cpu/test_prepack.py fails when vLLM no longer needs one of them; then delete it, and its one call
in `rollout.engine.reload`.
"""

from __future__ import annotations

from collections.abc import Iterable

import vllm
from torch import nn
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.platforms import current_platform

TRIED_WITH = "0.32.0"


def forget_packed_experts(modules: Iterable[nn.Module]) -> int:
    """Make the coming reload pack the experts among `modules` anew. Return their number; 0 where not on CPU.

    Raises:
        RuntimeError: the model has experts, and this workaround was not tried with this vLLM.
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


def repack_tied_heads(modules: Iterable[nn.Module]) -> int:
    """Pack again the embeddings and heads whose weight an earlier one of `modules` owns. Return their number.

    Raises:
        RuntimeError: there are some, and this workaround was not tried with this vLLM.
    """
    if not current_platform.is_cpu():
        return 0
    owned: set[int] = set()
    tied = []
    for module in modules:
        if isinstance(module, VocabParallelEmbedding):
            tied += [module] if id(module.weight) in owned else []
            owned.add(id(module.weight))
    if tied:
        check_version()
    for module in tied:
        module.quant_method.process_weights_after_loading(module)
    return len(tied)


def check_version() -> None:
    """Raise RuntimeError under a vLLM with which the workarounds were not tried."""
    if not vllm.__version__.startswith(TRIED_WITH):
        raise RuntimeError(
            f"vLLM {vllm.__version__}: reloading packed weights on CPU was tried with {TRIED_WITH} only. Run "
            "tests/rollout/cpu/test_prepack.py and set rollout.cpu.prepack.TRIED_WITH when it passes"
        )
