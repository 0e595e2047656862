"""A full read-back: every tensor that was pushed is found in the engine as it computes with it, and any other value is
named."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from rollout.engine.inference import Inference
from rollout.engine.readback import ReadBack
from rollout.engine.updates import parts
from rollout.transfer.bucket import Bucket
from rollout.transfer.shm import ShmSender
from rollout.transfer.update import Findings
from rollout.types import SamplingParams, WeightSpec
from tests.rollout.engine import inference_support as support

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def damage(worker: Any, changes: list[tuple[str, str]]) -> None:
    """In the engine's worker: add to one element of each of these parameters, or pack another weight."""
    modules = dict(worker.model_runner.get_model().named_modules())
    with torch.inference_mode():
        for path, leaf in changes:
            module = modules[path]
            if leaf == "cpu_linear":
                module.cpu_linear = other(module.cpu_linear)
            else:
                getattr(module, leaf).view(-1)[-1] += 0.5


def other(packed: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A packed layer whose first output has another weight for its last input."""

    def computed(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        y = packed(x, weight, bias)
        y[..., 0] += 0.5 * x[..., -1]
        return y

    return computed


GLM = [
    ("model.layers.1.self_attn.qkv_proj", "cpu_linear"),
    ("model.layers.1.mlp.shared_experts.gate_up_proj", "cpu_linear"),
    ("model.layers.1.mlp.experts.routed_experts", "w13_weight"),
    ("model.layers.1.mlp.experts.routed_experts", "w2_weight"),
    ("model.layers.1.mlp.gate", "e_score_correction_bias"),
    ("model.norm", "weight"),
]
LLAMA = [("model.layers.0.self_attn.o_proj", "cpu_linear"), ("lm_head", "cpu_linear")]


@pytest.mark.parametrize(
    ("make", "changes", "named"),
    [
        (
            support.make_glm,
            GLM,
            {
                "model.layers.1.self_attn.q_proj.weight",
                "model.layers.1.mlp.shared_experts.gate_proj.weight",
                "model.layers.1.mlp.gate.e_score_correction_bias",
                "model.norm.weight",
            },
        ),
        (support.make_llama, LLAMA, {"model.layers.0.self_attn.o_proj.weight", "lm_head.weight"}),
        (
            lambda path: support.make_llama(path, tied=True),
            LLAMA,
            {"model.layers.0.self_attn.o_proj.weight", "model.embed_tokens.weight"},
        ),
    ],
    ids=["glm", "llama", "tied llama"],
)
def test_every_tensor_is_found_and_other_values_are_named(
    tmp_path: Path, make: Callable[[Path], None], changes: list[tuple[str, str]], named: set[str]
) -> None:
    make(tmp_path / "model")
    first = support.checkpoint_weights(tmp_path / "model")
    second = support.perturbed(first, seed=1)

    async def scenario() -> None:
        engine, sender = await support.start(tmp_path / "model"), ShmSender("test")
        for version, weights in enumerate((first, second)):
            await support.push(engine, sender, weights, version)
            found, sampled = await asyncio.gather(engine.read_back(), sample(engine, version))
            assert found == Findings(same=len(weights)), found
            assert sampled == {version}
        await engine._call(lambda llm: llm.collective_rpc(damage, args=(changes,)))
        found = await engine.read_back()
        assert found is not None and not found.unread
        experts = {name.rpartition(".experts.")[0] + ".experts" for name in found.differ if ".experts." in name}
        assert {name for name in found.differ if ".experts." not in name} == named
        if make is support.make_glm:
            assert experts == {"model.layers.1.mlp.experts"} and len(found.differ) == len(named) + 3
        await engine.shutdown()
        sender.close()

    asyncio.run(scenario())


SHAPE = support._SHAPE | {"pad_token_id": 0}
TIED = {**SHAPE, "tie_word_embeddings": True}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "Qwen2": {name: value for name, value in SHAPE.items() if name != "head_dim"} | {"hidden_size": 128},
    "Qwen3Moe": SHAPE | {"moe_intermediate_size": 64, "num_experts": 8, "num_experts_per_tok": 2},
    "Qwen3": SHAPE,
    "Mistral": SHAPE,
    "Phi3": SHAPE,
    "Olmo2": SHAPE,
    "Gemma": SHAPE,
    "Gemma2": TIED | {"query_pre_attn_scalar": 32},
    "Gemma3Text": SHAPE,
    "Glm4": SHAPE,
    "Granite": SHAPE,
    "SmolLM3": SHAPE,
    "Cohere": TIED,
}
FEW = ("Qwen2", "Qwen3Moe")


@pytest.mark.parametrize(
    "name", [name if name in FEW else pytest.param(name, marks=pytest.mark.long) for name in ARCHITECTURES]
)
def test_every_tensor_of_other_architectures_is_found(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**ARCHITECTURES[name])
    model = transformers.AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path)
    weights = support.checkpoint_weights(tmp_path)

    async def scenario() -> Findings | None:
        engine, sender = await support.start(tmp_path), ShmSender("test")
        await support.push(engine, sender, weights, 1)
        found = await engine.read_back()
        await engine.shutdown()
        sender.close()
        return found

    assert asyncio.run(scenario()) == Findings(same=len(weights))


async def sample(engine: Inference, version: int) -> set[int]:
    """The versions of some tokens."""
    sampling = SamplingParams(max_tokens=8, temperature=1.0)
    completions = await support.sample(engine, [[5, 6, 7]], f"beside {version}", sampling)
    return {each for completion in completions for each in completion.versions}


def test_what_was_not_compared_does_not_count_as_the_same() -> None:
    model = torch.nn.ModuleDict({"norm": torch.nn.LayerNorm(4), "gone": torch.nn.Linear(2, 0)})
    experts = torch.nn.Module()
    experts.routed_experts = torch.nn.Module()
    model["experts"] = experts
    compared = ReadBack(model)
    compared.compare([("norm.weight", torch.ones(4)), ("norm.bias", torch.ones(4)), ("norm.weight", torch.ones(3))])
    assert compared.found == Findings(same=1, differ=["norm.bias", "norm.weight"])
    compared.compare(
        [("gone.weight", torch.ones(2, 2)), ("absent.weight", torch.ones(1)), ("norm.eps", torch.ones(()))]
    )
    assert compared.found.unread == ["gone.weight", "absent.weight", "norm.eps"]
    compared.compare([("layer.experts.0.gate_proj.weight", torch.ones(2, 2))])
    assert compared.found.unread[-1] == "layer.experts.0.gate_proj.weight" and compared.found.same == 1


def test_a_part_ends_before_it_is_too_large() -> None:
    specs = [WeightSpec(name=str(size), dtype="float32", shape=(size,)) for size in (1, 1, 9, 1, 2, 2)]
    bucket = Bucket(sequence=0, tensors=tuple(specs))
    assert list(parts(bucket, 16)) == [(0, 2), (2, 3), (3, 5), (5, 6)]
    assert list(parts(bucket, 1000)) == [(0, 6)]
