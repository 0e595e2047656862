"""The engine arguments that a recipe may set, checked without vLLM."""

from __future__ import annotations

import subprocess
import sys

import pytest

from rl.paths import REPOSITORY
from rollout.engine.arguments import check_engine_args, set_vllm_environment


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("logprobs_mode", "always processed_logprobs"),
        ("max_model_len", "use rollout.max_context"),
        ("quantization", "not the trainer's weights"),
        ("kv_cache_dtype", "changes the logprobs"),
        ("hf_overrides", "config.json"),
        ("enable_expert_parallel", "every expert"),
        ("pipeline_parallel_size", "every layer"),
        ("max_num_seq", "did you mean 'max_num_seqs'"),
    ],
)
def test_refused_arguments_name_the_fix(argument: str, says: str) -> None:
    with pytest.raises(ValueError, match=f"engine_args.{argument}.*{says}"):
        check_engine_args({argument: 1}, known=["max_num_seqs", "enforce_eager"])


def test_ordinary_arguments_pass() -> None:
    check_engine_args({"max_num_seqs": 64, "enforce_eager": True}, known=["max_num_seqs", "enforce_eager"])
    check_engine_args({"anything_vllm_may_have": 1})


def test_threads_are_set_on_cpu_only() -> None:
    cpu: dict[str, str] = {}
    set_vllm_environment(cpu, "cpu", 3, eager=True)
    assert cpu["OMP_NUM_THREADS"] == "3" and cpu["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    gpu: dict[str, str] = {}
    set_vllm_environment(gpu, "cuda", 3, eager=True)
    assert "OMP_NUM_THREADS" not in gpu and "TORCH_COMPILE_DISABLE" not in gpu
    assert cpu["TORCH_COMPILE_DISABLE"] == "1"
    for environment in (cpu, gpu):
        assert environment["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0" and environment["VLLM_NO_USAGE_STATS"] == "1"


def test_an_engine_that_compiles_may_do_so_on_cpu_too() -> None:
    environment: dict[str, str] = {}
    set_vllm_environment(environment, "cpu", 1, eager=False)
    assert "TORCH_COMPILE_DISABLE" not in environment and environment["OMP_NUM_THREADS"] == "1"


def test_a_log_level_that_is_set_already_stays() -> None:
    environment = {"VLLM_LOGGING_LEVEL": "DEBUG"}
    set_vllm_environment(environment, "cpu", 1, eager=True)
    assert environment["VLLM_LOGGING_LEVEL"] == "DEBUG"


def test_the_engine_module_is_light_until_an_engine_starts() -> None:
    script = "import sys, rollout.engine.inference; print(sorted({'vllm', 'transformers', 'ray'} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert shown.stdout.strip() == "[]"
