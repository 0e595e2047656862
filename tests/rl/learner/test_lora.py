"""Adapters train as PEFT does in plain PyTorch: on 1 and 2 ranks, under every ZeRO stage, experts whole or split."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from rl.families.registry import family_of
from rl.learner.config import LoraConfig
from rl.learner.lora import adapters_off, add_adapters, describe, linear_layers, matching
from rl.learner.model import load_model
from rl.weights.adapters import adapted_layers
from tests.rl.learner import learner_fixtures as fixtures
from tests.rl.learner.learner_cases import ADAPTER_CASES, AdapterCase
from tests.rl.learner.learner_worker import run_ranks

EVERY_CASE = [(world, case) for world in ADAPTER_CASES for case in ADAPTER_CASES[world]]
Results = dict[int, list[dict[Any, Any]]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("lora")
    for kind in ("llama", "glm", "llama-other"):
        fixtures.make_model(kind, directory)
    return directory


@pytest.fixture(scope="module")
def scenarios(models: Path) -> Results:
    """The results of each rank by scenario, by world size."""
    more = {1: ["dropped_out"], 2: []}
    return {
        world: run_ranks(["adapters", "adapters_resumed", *more[world]], world, models / f"adapters{world}")
        for world in ADAPTER_CASES
    }


@pytest.fixture(scope="module")
def results(scenarios: Results) -> Results:
    return {world: [rank["adapters"] for rank in ranks] for world, ranks in scenarios.items()}


@pytest.fixture(scope="module")
def resumed(scenarios: Results) -> Results:
    return {world: [rank["adapters_resumed"] for rank in ranks] for world, ranks in scenarios.items()}


@pytest.fixture(scope="module")
def answers(models: Path) -> dict[AdapterCase, fixtures.AdapterAnswer]:
    found: dict[str, fixtures.AdapterAnswer] = {}
    for _, case in EVERY_CASE:
        if repr(case.lora) + case.kind not in found:
            answer = fixtures.plain_adapter_answer(models / case.kind, case.lora, fixtures.rows(), steps=2)
            found[repr(case.lora) + case.kind] = answer
    return {case: found[repr(case.lora) + case.kind] for _, case in EVERY_CASE}


@pytest.mark.slow
@pytest.mark.timeout(1200)
class TestRanks:
    @pytest.mark.parametrize(("world", "case"), EVERY_CASE)
    def test_two_steps_are_those_of_peft_in_plain_pytorch(self, world, case, results: Results, answers) -> None:
        """The second step has a gradient for every tensor: before the first, all B are zero."""
        plain = answers[case]
        for rank in results[world]:
            ours = rank[case]
            assert [s["loss"] for s in ours["stats"]] == pytest.approx(plain.losses, rel=2e-6, abs=2e-6)
            assert [s["grad_norm"] for s in ours["stats"]] == pytest.approx(plain.grad_norms, rel=1e-5)
            assert_close(ours["adapter"], plain.adapter)
            for mine, theirs in zip(ours["logprobs"], plain.logprobs, strict=True):
                torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize(("world", "case"), EVERY_CASE)
    def test_only_the_adapter_moves_and_the_merge_is_pefts(self, world, case, results: Results, models: Path) -> None:
        for rank in results[world]:
            ours = rank[case]
            stored = AutoModelForCausalLM.from_pretrained(models / case.kind)
            base = fixtures.checkpoint_names(stored, stored.state_dict())
            assert ours["base"].keys() == base.keys()
            assert all(torch.equal(ours["base"][name], base[name]) for name in base)
            merged = merged_by_peft(models / case.kind, case.lora, ours["adapter"])
            assert all(torch.equal(ours["merged"][name], merged[name]) for name in base), "bit for bit"
            moved = [name for name in base if not torch.equal(base[name], merged[name])]
            assert len(moved) == len([name for name in ours["adapter"] if "lora_A" in name])

    @pytest.mark.parametrize(("world", "case"), EVERY_CASE)
    def test_the_reference_is_the_policy_before_training(self, world, case, results: Results) -> None:
        for rank in results[world]:
            ours = rank[case]
            for begun, reference, now in zip(ours["begun"], ours["reference"], ours["logprobs"], strict=True):
                # DoRA divides by norms that it has multiplied by, so that it begins within rounding only.
                torch.testing.assert_close(reference, begun, rtol=0, atol=2e-6 if case.dora else 0)
                assert (now - begun).abs().max() > 1e-3

    @pytest.mark.parametrize(("world", "case"), EVERY_CASE)
    def test_a_checkpoint_holds_no_frozen_weights(self, world, case, results: Results) -> None:
        ours = results[world][0][case]
        adapter = sum(tensor.nbytes for tensor in ours["adapter"].values())
        files = list((ours["export"] / "checkpoint").rglob("*.pt"))
        assert sum(path.stat().st_size for path in files) < 4 * adapter + 100_000 * world
        frozen = {tuple(t.shape) for name, t in ours["base"].items() if "embed" in name or "experts" in name}
        for path in files:
            saved = torch.load(path, weights_only=False, map_location="cpu")
            assert not frozen & {tuple(t.shape) for t in tensors_in(saved)}, path

    @pytest.mark.parametrize(("world", "case"), EVERY_CASE)
    def test_a_resumed_adapter_goes_on_bit_for_bit_and_over_its_own_base_only(
        self, world, case, results: Results, resumed: Results
    ) -> None:
        for first, second in zip(results[world], resumed[world], strict=True):
            assert second[case]["third"] == first[case]["third"]
            if case is ADAPTER_CASES[world][0]:
                assert first[case]["base_hash"] in second[case]["refused"]
                assert "an adapter is of use with its own base model only" in second[case]["refused"]

    @pytest.mark.parametrize(("world", "case"), EVERY_CASE)
    def test_merged_exports_load_in_transformers_and_adapters_in_peft(
        self, world, case, results: Results, models: Path
    ) -> None:
        ours = results[world][0][case]
        merged = AutoModelForCausalLM.from_pretrained(ours["export"] / "merged", dtype=torch.float32)
        assert gap(merged, ours["logprobs"]) < 1e-5
        config = json.loads((ours["export"] / "adapter_config.json").read_text())
        assert config["r"] == 4 and config["base_model_name_or_path"] == str(models / case.kind)
        if case.kind == "llama":  # in models with experts PEFT 0.21 takes these names for those of routed experts
            assert sorted(config["target_modules"]) == sorted(
                ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
            )
            base = AutoModelForCausalLM.from_pretrained(models / case.kind, dtype=torch.float32)
            assert gap(PeftModel.from_pretrained(base, ours["export"]), ours["logprobs"]) < 1e-5

    def test_it_says_what_is_trained(self, results: Results) -> None:
        (case,) = [case for case in ADAPTER_CASES[1] if case.targets]
        assert "in down_proj (2), q_proj (3)" in results[1][0][case]["described"]


def assert_close(ours: dict[str, Tensor], plain: dict[str, Tensor]) -> None:
    assert ours.keys() == plain.keys()
    for name, tensor in plain.items():
        assert (ours[name] - tensor).norm() <= 2e-5 * tensor.norm(), name


def merged_by_peft(path: Path, lora: LoraConfig, adapter: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights that PEFT's own `merge` makes of an adapter."""
    model = load_model(str(path), "float32", 0, family_of(json.loads((path / "config.json").read_text())))
    add_adapters(model, lora, 0, None)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            key = "base_model.model." + name.replace(".default", "")
            parameter.data.copy_(adapter[key if key in adapter else key.removesuffix(".weight")])
    for _, layer in adapted_layers(model):
        layer.merge()
    state = {n.replace(".base_layer", ""): t for n, t in model.state_dict().items() if ".lora_" not in n}
    return fixtures.checkpoint_names(model, state)


def tensors_in(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for part in parts for tensor in tensors_in(part)]


@torch.no_grad()
def gap(model: Any, logprobs: list[Tensor]) -> float:
    found = [fixtures._row_logprobs(model, row)[0] for row in fixtures.rows()]
    return max(float((one - other).abs().max()) for one, other in zip(found, logprobs, strict=True) if len(one))


@pytest.fixture
def glm(tmp_path: Path) -> Any:
    path = fixtures.make_model("glm", tmp_path)
    return load_model(str(path), "float32", 0, family_of({"model_type": "glm4_moe"}))


def test_attention_and_shared_experts_are_adapted_by_default_and_routed_experts_and_routers_never(glm) -> None:
    add_adapters(glm, LoraConfig(rank=2), 0, None)
    names = {name for name, _ in adapted_layers(glm)}
    assert "model.layers.1.mlp.shared_experts.gate_proj.base_layer.weight" in names
    assert "model.layers.0.mlp.down_proj.base_layer.weight" in names
    assert all("self_attn" in name or "mlp.shared_experts" in name or "layers.0.mlp" in name for name in names)
    trained = [name for name, parameter in glm.named_parameters() if parameter.requires_grad]
    assert trained and all(".lora_" in name for name in trained)
    assert "parameters are trained, in down_proj (3), gate_proj (3), k_proj (3)" in describe(glm)


def test_every_target_must_match_and_the_nearest_name_is_told(glm) -> None:
    layers = linear_layers(glm)
    assert matching(layers, ["layers.1.self_attn.q_proj"]) == ["model.layers.1.self_attn.q_proj"]
    with pytest.raises(
        ValueError, match=r"no linear layer q_porj; did you mean 'q_proj'\?.*routed experts and the head"
    ):
        add_adapters(glm, LoraConfig(targets=("k_proj", "q_porj")), 0, None)
    for absent in ("lm_head", "experts", "proj", "mlp"):
        with pytest.raises(ValueError, match="no linear layer"):
            matching(layers, [absent])


def test_the_seed_decides_the_initial_adapter_and_the_global_generator_stays(tmp_path: Path) -> None:
    path = fixtures.make_model("llama", tmp_path)

    def adapter(seed: int) -> Tensor:
        model = load_model(str(path), "float32", 0, family_of({"model_type": "llama"}))
        add_adapters(model, LoraConfig(), seed, None)
        return torch.cat([p.detach().flatten() for n, p in model.named_parameters() if ".lora_A" in n])

    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    found = [adapter(seed) for seed in (5, 5, 6)]
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_adapters_come_back_on_after_an_error(glm) -> None:
    add_adapters(glm, LoraConfig(rank=2), 0, None)
    with pytest.raises(RuntimeError), adapters_off(glm):
        assert all(layer.disable_adapters for _, layer in adapted_layers(glm))
        raise RuntimeError
    assert not any(layer.disable_adapters for _, layer in adapted_layers(glm))
    assert all(p.requires_grad for n, p in glm.named_parameters() if ".lora_" in n)


@pytest.mark.slow
def test_dropout_is_at_work_in_training_and_leaves_the_reference_alone(
    scenarios: Results,
) -> None:
    found = scenarios[1][0]["dropped_out"]
    assert found[0.0]["losses"][0] == found[0.0]["losses"][1]
    assert abs(found[0.5]["losses"][0] - found[0.5]["losses"][1]) > 1e-4
    assert found[0.5]["reference"] and found[0.5]["exported"] == 0.5
