"""The hardware that a recipe wants, worked out by hand for the cluster recipe, and the rule of run.device."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rl.config import Recipe
from rl.families.family import ModelSize
from rl.families.glm4_moe import GLM_45, GLM_45_AIR
from rl.paths import REPOSITORY
from rl.recipe.hardware import Wants, missing_hardware, resolve_device, wants
from rl.recipe.load import load_recipe
from rl.verbs.plan import describe, model_size

CLUSTER = REPOSITORY / "recipes" / "agent_rl.yaml"
QUICKSTART = REPOSITORY / "recipes" / "quickstart.yaml"
SHRUNK = (
    "run.device=cpu",
    "model.dtype=float32",
    "trainer.ranks=2",
    "trainer.expert_parallel=1",
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
    assert any("run.ray_address" in line for line in lines)
    assert lines[-1].endswith(
        "SLUICE_DEVICE=cpu ./launch.sh RECIPE run.device=cpu model.dtype=float32 inference.tensor_parallel=1"
    )


def test_the_quickstart_on_too_few_gpus_names_the_command_for_its_cpu() -> None:
    lines = missing_hardware(load_recipe(QUICKSTART), cpus=8, gpus=1)
    assert lines[0].startswith("this recipe wants 3 GPUs") and lines[-1].endswith(
        "SLUICE_DEVICE=cpu ./launch.sh RECIPE"
    )


def test_an_engine_wider_than_any_machine_is_refused_whatever_the_total(cluster: Recipe) -> None:
    assert missing_hardware(cluster, cpus=68, gpus=64, largest_node_gpus=8) == []
    (line,) = missing_hardware(cluster, cpus=68, gpus=64, largest_node_gpus=4)
    assert line.startswith("inference.tensor_parallel=8: ") and "use inference.tensor_parallel<=4" in line


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
    assert model_size(str(tiny_model)) == ModelSize(parameters=2 * layer + 8 + 2 * 32 * 8, layers=2, hidden=8)


@pytest.fixture
def empty_hub_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hide the real hub cache: if the cluster recipe's model were in it, its own config would be counted."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))


@pytest.mark.usefixtures("empty_hub_cache")
def test_published_sizes_stand_in_for_a_config_that_is_not_here() -> None:
    assert model_size("zai-org/GLM-4.5") == GLM_45 and GLM_45.parameters == 355 * 10**9
    assert model_size("zai-org/GLM-4.5-Air") == GLM_45_AIR and GLM_45_AIR.parameters == 106 * 10**9
    assert model_size("owner/no-such-model") is None


@pytest.mark.usefixtures("empty_hub_cache")
def test_memory_of_the_cluster_recipe_by_hand(cluster: Recipe) -> None:
    text = describe(cluster, cpus=68, gpus=64)
    assert "106.0 B parameters" in text
    assert "55.5 GiB in each of 32 ranks" in text  # 106e9 × (2 + 16) bytes / 32 / 2**30
    assert "24.7 GiB in each engine GPU" in text  # 106e9 × 2 bytes / 8 / 2**30
    assert "5.8 GiB for the inputs of 46 layers" in text  # 46 × 16384 tokens × 4096 × 2 bytes / 2**30


def test_a_plan_ends_with_whether_the_recipe_can_start(cluster: Recipe, tiny_model: Path) -> None:
    here = describe(cluster, cpus=68, gpus=64)
    assert "── hardware ──\nrun.device=cuda: wants 64 GPUs (32 trainer, 32 inference) and 68 CPU cores\n" in here
    assert "here: 64 GPUs, 68 CPU cores\ncan start here" in here
    assert "here: 63 GPUs, 68 CPU cores\nthis recipe wants 64 GPUs" in describe(cluster, cpus=68, gpus=63)
    hosts = describe(load_recipe(CLUSTER, ["run.hostfile=hosts"]), cpus=2, gpus=0)
    assert "the machines in hosts are asked when the run starts" in hosts and "this recipe wants" not in hosts
    joined = describe(load_recipe(CLUSTER, ["run.ray_address=auto"]), cpus=2, gpus=0)
    assert "the Ray cluster at auto is asked when the run starts" in joined and "can start" not in joined
    small = describe(load_recipe(CLUSTER, [f"model={tiny_model}", *SHRUNK]), cpus=2, gpus=0)
    assert "run.device=cpu: runs on CPU\nhere: 0 GPUs, 2 CPU cores\ncan start here" in small
    assert "0.0 M parameters in float32" in small
    titles = ["resolved recipe", "derived", "memory", "hardware"]
    assert [line.strip("─ ") for line in here.splitlines() if line.startswith("──")][:4] == titles


def test_memory_without_gradient_checkpointing_names_what_it_saves(tiny_model: Path) -> None:
    overrides = (f"model={tiny_model}", *SHRUNK, "trainer.gradient_checkpointing=false")
    text = describe(load_recipe(CLUSTER, overrides), cpus=2, gpus=0)
    assert "many times the 1.0 MiB of their inputs" in text  # 2 layers × 16384 tokens × 8 × 4 bytes


def test_plan_shows_recipe_arithmetic_memory_and_verdict(tiny_model: Path) -> None:
    text = describe(load_recipe(CLUSTER, [f"model={tiny_model}", *SHRUNK]), cpus=2, gpus=0)
    assert "name: agent-rl" in text and "trajectories_per_step: 512" in text
    assert "parameters in float32" in text and text.endswith("can start here")


def test_engines_that_take_turns_with_the_trainer_need_no_gpus_of_their_own() -> None:
    recipe = load_recipe("recipes/moe_one_node.yaml")
    assert wants(recipe).gpus == 8
    assert missing_hardware(recipe, cpus=18, gpus=8, largest_node_gpus=8) == []
    lines = missing_hardware(recipe, cpus=18, gpus=7)
    assert "8 for trainer.ranks=8 and of these 8 for inference.replicas=2" in lines[1]
    text = describe(recipe, cpus=18, gpus=8)
    assert "on each device: 63.9 GiB and activations while training, 23.3 GiB while pushing" in text
    assert "on the host: 511.3 GiB for the states of 8 ranks, and 113.6 GiB for the engines' weights" in text
    assert "wants 8 GPUs (8 trainer, of these 8 inference)" in text


def test_the_recipe_for_one_gpu_wants_one_and_its_engine_keeps_the_base() -> None:
    recipe = load_recipe("recipes/lora_single_gpu.yaml")
    assert wants(recipe).gpus == 1 and missing_hardware(recipe, cpus=3, gpus=1) == []
    assert "on the host: 7.5 GiB for the states of 1 ranks, and 7.5 GiB for" in describe(recipe, cpus=3, gpus=1)


def test_every_gpu_of_the_trainer_must_have_an_engine() -> None:
    recipe = load_recipe(QUICKSTART, ["placement=colocated"])
    assert missing_hardware(recipe, cpus=8, gpus=0) == [], "on CPU it makes no difference"
    (problem, _) = missing_hardware(recipe, cpus=8, gpus=2)
    assert "engines want all GPUs of trainer.ranks=2; use as many" in problem
