"""Tensors and activations of a plan, counted by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from rl.families.registry import published_config
from rl.planning.activations import saved_by_layer
from rl.planning.tensors import Parameter, Tensors, held, tensors_of
from rl.recipe.load import load_recipe
from tests.rl.planning.cases import CLUSTER, SHRUNK

TOKENS = 10


def of(model: str | Path, *words: str) -> Tensors | None:
    return tensors_of(load_recipe(CLUSTER, [f"model={model}", *SHRUNK, *words]))


def test_parameters_are_counted_from_the_config(tiny_llama: Path) -> None:
    tensors = of(tiny_llama)
    attention = 8 * 8 + 2 * (8 * 4) + 8 * 8
    layer = attention + 3 * 8 * 16 + 2 * 8
    assert tensors is not None
    assert tensors.base == tensors.trained == 2 * layer + 8 + 2 * 32 * 8
    assert (tensors.layers, tensors.hidden, tensors.vocabulary) == (2, 8, 32)


def test_a_tied_head_is_counted_once(tiny_llama: Path) -> None:
    config = json.loads((tiny_llama / "config.json").read_text())
    untied = of(tiny_llama)
    (tiny_llama / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    tied = of(tiny_llama)
    assert tied is not None and untied is not None and untied.base - tied.base == 32 * 8


def test_only_the_adapter_of_a_model_is_trained(tiny_llama: Path) -> None:
    tensors = of(tiny_llama, "lora.rank=2", "lora.targets=[q_proj]")
    assert tensors is not None
    assert tensors.trained == 2 * 2 * (8 + 8), "two layers, rank 2, from 8 to 8"
    assert tensors.base == of(tiny_llama).base  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("zai-org/GLM-4.5", 352.8),  # the report's 355 have a layer for multi-token prediction
        ("zai-org/GLM-4.5-Air", 106.9),
        ("Qwen/Qwen3-30B-A3B", 30.5),
        ("Qwen/Qwen3-235B-A22B", 235.1),
        ("Qwen/Qwen3-4B", 4.02),
        ("Qwen/Qwen3-8B", 8.19),
    ],
)
def test_published_shapes_give_the_published_numbers_of_parameters(
    name: str, billions: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    words = ["model.renderer=qwen3"] if name.startswith("Qwen") else []
    tensors = of(name, *words)
    assert tensors is not None and published_config(name) is not None
    assert tensors.base / 1e9 == pytest.approx(billions, rel=2e-3)


def test_a_model_that_nobody_knows_has_no_tensors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert of("owner/no-such-model", "model.renderer=qwen3") is None


def test_experts_lie_once_in_an_expert_parallel_group() -> None:
    parameters = [Parameter(name="a", elements=10), Parameter(name="e", elements=64, expert=True)]
    assert held(parameters, ranks=4, expert_parallel=2, divided=False) == 10 + 32
    assert held(parameters, ranks=4, expert_parallel=2, divided=True) == 3 + 16, "10 in 4 parts, 64 in 2 and 2"
    assert held(parameters, ranks=4, expert_parallel=1, divided=True) == 3 + 16


def test_what_a_layer_keeps_is_what_autograd_saves(tiny_llama: Path) -> None:
    """By hand, in vectors of a token: hidden 8, heads 2 x 4, one key and one value head of 4, feed-forward 16."""
    tensors = of(tiny_llama)
    assert tensors is not None
    norm = 8 + 1 + 8  # its input, the reciprocal of the root, the normalised input (times the weight: next line)
    attention = 8 + (8 + 4 + 4 + 8) + 8  # input of q, k, v; query, key, value and output; input of o
    feed_forward = 8 + 16 + 16 + 16 + 16  # input; gate, its activation, up, their product
    layers = saved_by_layer(tensors, TOKENS)
    assert layers is not None
    least, most = 4 * TOKENS * (attention + feed_forward), 4 * TOKENS * (2 * norm + attention + feed_forward + 8)
    assert least <= layers[0] <= most and saved_by_layer(of(tiny_llama), 2 * TOKENS)[0] == pytest.approx(  # type: ignore
        2 * layers[0], rel=0.01
    )


def test_a_model_that_the_meta_device_cannot_run_has_unknown_activations(tiny_llama: Path) -> None:
    tensors = of(tiny_llama)
    assert tensors is not None

    def values(*_: object) -> None:
        raise NotImplementedError("this needs values")

    tensors.model.get_decoder().layers[1].register_forward_pre_hook(values)
    assert saved_by_layer(tensors, TOKENS) is None


def test_experts_are_counted_with_balanced_routing(models: Callable[[str], Path]) -> None:
    dense, *sparse = saved_by_layer(of(models("moe")), TOKENS)  # type: ignore[misc, arg-type]
    chosen = 2 * (2 * 512 + 4 * 640)  # two experts a token: input, output, and four vectors of an expert's width
    assert sparse[0] - dense >= 4 * TOKENS * (chosen - 4 * 1024)
    assert sparse[0] == sparse[5]
