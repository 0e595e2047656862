"""The hardware that a recipe wants, worked out by hand for the cluster recipe, and the rule of run.device."""

from __future__ import annotations

import pytest

from rl.config import Recipe
from rl.recipe.hardware import Wants, missing_hardware, resolve_device, wants
from rl.recipe.load import load_recipe
from tests.rl.planning.cases import CLUSTER, QUICKSTART, SHRUNK


@pytest.fixture
def cluster() -> Recipe:
    return load_recipe(CLUSTER)


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


def test_the_shrunk_cluster_recipe_runs_on_any_cpu() -> None:
    assert missing_hardware(load_recipe(CLUSTER, SHRUNK), cpus=1, gpus=0) == []


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


def test_engines_that_take_turns_with_the_trainer_need_no_gpus_of_their_own() -> None:
    recipe = load_recipe("recipes/moe_one_node.yaml")
    assert wants(recipe).gpus == 8
    assert missing_hardware(recipe, cpus=18, gpus=8, largest_node_gpus=8) == []
    lines = missing_hardware(recipe, cpus=18, gpus=7)
    assert "8 for trainer.ranks=8 and of these 8 for inference.replicas=2" in lines[1]


def test_a_run_that_begins_with_fewer_engines_wants_fewer_gpus() -> None:
    few = ["run.device=cuda", "trainer.ranks=2", "inference.replicas=4", "inference.min_replicas=1"]
    recipe = load_recipe(QUICKSTART, few)
    assert missing_hardware(recipe, cpus=4, gpus=3) == []
    lines = missing_hardware(recipe, cpus=4, gpus=2)
    assert "wants 3 GPUs and 4 CPU cores" in lines[0] and "(at first inference.min_replicas=1 of them)" in lines[1]


def test_the_recipe_for_one_gpu_wants_one() -> None:
    recipe = load_recipe("recipes/lora_single_gpu.yaml")
    assert wants(recipe).gpus == 1 and missing_hardware(recipe, cpus=3, gpus=1) == []


def test_every_gpu_of_the_trainer_must_have_an_engine() -> None:
    recipe = load_recipe(QUICKSTART, ["placement=colocated"])
    assert missing_hardware(recipe, cpus=8, gpus=0) == [], "on CPU it makes no difference"
    (problem, _) = missing_hardware(recipe, cpus=8, gpus=2)
    assert "engines want all GPUs of trainer.ranks=2; use as many" in problem
