"""What a recipe wants of the machine: by hand for the cluster recipe, and the rule of run.device."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rl.config import Recipe
from rl.plan import Wants, count_parameters, describe, missing_hardware, resolve_device, wants
from rl.recipe import load_recipe

REPOSITORY = Path(__file__).parents[2]
CLUSTER = REPOSITORY / "recipes" / "agent_rl.yaml"
SHRUNK = (
    "run.device=cpu",
    "model.dtype=float32",
    "trainer.ranks=2",
    "trainer.expert_parallel=2",
    "inference.replicas=1",
    "inference.tensor_parallel=1",
)


@pytest.fixture
def cluster() -> Recipe:
    return load_recipe(CLUSTER)


@pytest.fixture
def tiny_model(tmp_path: Path) -> Path:
    """A Llama of two layers, small enough to count by hand. No weights are needed."""
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 32,
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 4,
        "tie_word_embeddings": False,
    }
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return tmp_path


def test_the_cluster_recipe_wants_eight_machines(cluster: Recipe) -> None:
    assert wants(cluster) == Wants(trainer_gpus=32, inference_gpus=32, cpus=68)
    assert wants(cluster).gpus == 64


def test_missing_hardware_says_what_is_wanted_what_is_here_and_how_to_shrink(cluster: Recipe) -> None:
    lines = missing_hardware(cluster, cpus=2, gpus=0)
    assert lines[0] == "this recipe wants 64 GPUs and 68 CPU cores; here are 0 GPUs and 2 CPU cores"
    assert "trainer.ranks=32" in lines[1] and "inference.replicas=4 × inference.tensor_parallel=8" in lines[1]
    assert any("run.device=cpu" in line for line in lines) and any("run.ray_address" in line for line in lines)


def test_enough_hardware_is_enough_and_one_less_is_not(cluster: Recipe) -> None:
    assert missing_hardware(cluster, cpus=68, gpus=64) == []
    assert missing_hardware(cluster, cpus=68, gpus=63)
    assert missing_hardware(cluster, cpus=67, gpus=64)


def test_the_shrunk_cluster_recipe_runs_on_any_cpu(tiny_model: Path) -> None:
    recipe = load_recipe(CLUSTER, [f"model={tiny_model}", *SHRUNK])
    assert missing_hardware(recipe, cpus=1, gpus=0) == []


@pytest.mark.parametrize(
    ("device", "gpus", "resolved"),
    [("auto", 0, "cpu"), ("auto", 1, "cuda"), ("cpu", 8, "cpu"), ("cuda", 0, "cuda")],
)
def test_device_rule(device: str, gpus: int, resolved: str) -> None:
    recipe = load_recipe(CLUSTER, [*SHRUNK, f"run.device={device}"])
    assert resolve_device(recipe, gpus) == resolved


def test_auto_without_gpus_is_held_to_what_cpus_can_do() -> None:
    recipe = load_recipe(CLUSTER, ["run.device=auto"])
    lines = missing_hardware(recipe, cpus=64, gpus=0)
    assert "use model.dtype=float32" in lines[0] and "inference.tensor_parallel=8" in lines[1]
    assert lines[-1] == "no GPU is seen here, so run.device=auto means cpu"


def test_parameters_are_counted_from_the_config(tiny_model: Path) -> None:
    attention = 8 * 8 + 2 * (8 * 4) + 8 * 8
    layer = attention + 3 * 8 * 16 + 2 * 8
    assert count_parameters(str(tiny_model)) == 2 * layer + 8 + 2 * 32 * 8


def test_published_sizes_stand_in_for_a_config_that_is_not_here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert count_parameters("zai-org/GLM-4.5") == 355 * 10**9
    assert count_parameters("zai-org/GLM-4.5-Air") == 106 * 10**9
    assert count_parameters("owner/no-such-model") is None


def test_memory_of_the_cluster_recipe_by_hand(cluster: Recipe) -> None:
    text = describe(cluster, cpus=68, gpus=64)
    if "106.0 B parameters" in text:  # else the real config.json is on this machine
        assert "55.5 GiB in each of 32 ranks" in text  # 106e9 × (2 + 16) bytes / 32 / 2**30
        assert "24.7 GiB in each engine GPU" in text  # 106e9 × 2 bytes / 8 / 2**30


def test_plan_shows_recipe_arithmetic_memory_and_verdict(tiny_model: Path) -> None:
    text = describe(load_recipe(CLUSTER, [f"model={tiny_model}", *SHRUNK]), cpus=2, gpus=0)
    assert "name: agent-rl" in text and "trajectories_per_step: 512" in text
    assert "parameters in float32" in text and text.endswith("can start here")
