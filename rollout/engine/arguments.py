"""The check of a recipe's vLLM arguments (`inference.engine_args`), and the environment variables that vLLM reads.

Arguments that Sluice sets itself are refused, and so are those that would make the engine sample from another
distribution than the one the trainer computes. This imports no vllm: recipes are checked before anything heavy starts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, MutableMapping
from typing import Any

from rewards.extension import nearest

OWNED = {
    "model": "model.path",
    "dtype": "model.dtype",
    "seed": "run.seed",
    "max_model_len": "rollout.max_context",
    "tensor_parallel_size": "inference.tensor_parallel",
    "data_parallel_size": "inference.replicas",
    "tokenizer": "model.path",
    "skip_tokenizer_init": "nothing: engines see tokens only",
    "load_format": "nothing: weights come from the trainer",
    "weight_transfer_config": "weight_sync.transport",
    "worker_extension_cls": "nothing: Sluice's weight transfer needs it",
    "distributed_executor_backend": "inference.tensor_parallel",
    "generation_config": "rollout.sampling",
    "override_generation_config": "rollout.sampling",
    "enable_lora": "lora",
    "max_loras": "buffer.max_staleness",
    "max_cpu_loras": "buffer.max_staleness",
    "max_lora_rank": "lora.rank",
    "lora_dtype": "model.dtype",
    "lora_target_modules": "lora.targets",
    "enable_sleep_mode": "placement",
    "logprobs_mode": "nothing: it is always processed_logprobs",
}
"""Engine arguments that Sluice sets, and for each the recipe key that decides it, or the reason why none does."""

UNMIRRORED = {
    "quantization": "quantized weights are not the trainer's weights",
    "quantization_config": "quantized weights are not the trainer's weights",
    "kv_cache_dtype": "a quantized KV cache changes the logprobs",
    "calculate_kv_scales": "a quantized KV cache changes the logprobs",
    "logits_processors": "the trainer does not apply logits processors",
    "hf_overrides": "the trainer reads the model's own config.json; change it there",
    "hf_config_path": "the trainer reads the model's own config.json; change it there",
    "model_impl": "only vLLM's own model code was compared with the trainer's",
    "speculative_config": "draft weights are not pushed, and rejection sampling was not compared with the trainer",
    "enable_expert_parallel": "every worker of an engine must take every expert's weights",
    "pipeline_parallel_size": "every worker of an engine must take every layer's weights",
    "watermarking_config": "a watermark changes the distribution",
}
"""Engine arguments that are refused, and why."""


def check_engine_args(arguments: Mapping[str, Any], known: Collection[str] = ()) -> None:
    """Refuse arguments that a recipe may not set and, where `known` (vLLM's own names) is given, unknown ones.

    Raises:
        ValueError: an argument is refused. The message names it and the fix.
    """
    for name in arguments:
        if name in OWNED:
            raise ValueError(f"inference.engine_args.{name} is set by Sluice; use {OWNED[name]}")
        if name in UNMIRRORED:
            raise ValueError(f"inference.engine_args.{name} is refused: {UNMIRRORED[name]}. Remove it")
        if known and name not in known:
            raise ValueError(f"inference.engine_args.{name} is no vLLM engine argument{nearest(name, [*known])}")


def set_vllm_environment(environment: MutableMapping[str, str], device: str, threads: int, eager: bool) -> None:
    """Set the variables that vLLM and torch read while they are imported: pass os.environ, before `import vllm`."""
    environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    environment["VLLM_NO_USAGE_STATS"] = "1"
    environment.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    if device == "cpu":
        # Without OMP_NUM_THREADS vLLM limits torch to one thread. Pinned threads would compete with the trainer's.
        environment["OMP_NUM_THREADS"] = str(threads)
        environment["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        if eager:
            # vLLM compiles two logprob helpers even in eager mode: 35 s of C++ at the first token that gain nothing.
            environment["TORCH_COMPILE_DISABLE"] = "1"
