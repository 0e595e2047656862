"""A checkpoint read tensor by tensor is the model that transformers loads, and one that does not fit is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from rl.families.registry import family_of, local_config
from rl.learner.model import load_model
from rl.weights.hf_reader import HfCheckpoint, has_weights
from tests.rl.learner import learner_fixtures as fixtures


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("saved")
    for kind in ("glm", "qwen", "llama"):
        fixtures.make_model(kind, directory)
    return directory


def read(directory: Path, dtype: str = "float32", **options: Any) -> PreTrainedModel:
    return load_model(str(directory), dtype, 0, family_of(local_config(directory) or {}), **options)


def edited(source: Path, target: Path, edit) -> Path:
    """Copy a model directory with its tensors edited."""
    target.mkdir()
    tensors = load_file(source / "model.safetensors")
    edit(tensors)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    (target / "config.json").write_text((source / "config.json").read_text())
    return target


@pytest.mark.parametrize("kind", ["glm", "qwen", "llama"])
@pytest.mark.parametrize("shard_size", ["50GB", "100KB"])
def test_every_tensor_is_that_of_transformers(kind: str, shard_size: str, saved: Path, tmp_path: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(saved / kind, dtype=torch.float32)
    plain.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard_size == "100KB")
    ours = read(tmp_path)
    expected = plain.state_dict()
    assert ours.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in ours.state_dict().items())
    assert all(torch.equal(b, dict(plain.named_buffers())[name]) for name, b in ours.named_buffers())
    assert (ours.lm_head.weight is ours.model.embed_tokens.weight) == (kind == "llama")


def test_every_parameter_is_placed_once_and_only_one_of_them_is_whole(saved: Path) -> None:
    sizes: list[int] = []

    def take(parameter: nn.Parameter) -> None:
        sizes.append(parameter.numel())
        parameter.data = parameter.data.new_empty(0)

    model = read(saved / "glm", place=take)
    plain = AutoModelForCausalLM.from_pretrained(saved / "glm", dtype=torch.float32)
    assert sorted(sizes) == sorted(p.numel() for p in plain.parameters())
    assert all(parameter.numel() == 0 for parameter in model.parameters())


def test_the_routers_correction_bias_and_the_rotary_frequencies_stay_float32(saved: Path) -> None:
    buffers = dict(read(saved / "glm", "bfloat16").named_buffers())
    plain = dict(AutoModelForCausalLM.from_pretrained(saved / "glm", dtype=torch.float32).named_buffers())
    assert all(torch.equal(buffer, plain[name]) for name, buffer in buffers.items())


def drop(name: str):
    return lambda tensors: tensors.pop(name)


def put(name: str, tensor: Tensor):
    return lambda tensors: tensors.update({name: tensor})


def rename(old: str, new: str):
    return lambda tensors: tensors.update({new: tensors.pop(old)})


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    tensors = other.state_dict()
    return all(torch.equal(tensor, tensors[name]) for name, tensor in one.state_dict().items())


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (drop("model.layers.1.mlp.experts.7.up_proj.weight"), "lacks model.layers.1.mlp.experts.7.up_proj.weight"),
        (drop("model.layers.1.mlp.gate.e_score_correction_bias"), "lacks .*e_score_correction_bias"),
        (put("model.layers.1.extra.weight", torch.zeros(2)), "no place for: model.layers.1.extra.weight"),
        (
            rename("model.norm.weight", "norm.weight"),
            "lacks model.norm.weight and holds tensors that the model has no place for: norm.weight",
        ),
        (put("model.norm.weight", torch.zeros(3)), r"model.norm.weight in .* is \[3\], the model wants \[64\]"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_before_anything_is_placed(edit, message, saved, tmp_path) -> None:
    directory = edited(saved / "glm", tmp_path / "edited", edit)
    placed: list[nn.Parameter] = []
    with pytest.raises(ValueError, match=message):
        read(directory, place=placed.append)
    assert placed == []


def test_tensors_that_the_models_class_leaves_out_are_ignored(saved: Path, tmp_path: Path) -> None:
    """GLM-4.5's checkpoints carry a layer for multi-token prediction (46 in Air, 92 in the large one)."""
    edit = put("model.layers.46.eh_proj.weight", torch.zeros(2))
    assert same_weights(read(edited(saved / "glm", tmp_path / "edited", edit)), read(saved / "glm"))


def test_rotary_frequencies_in_an_older_checkpoint_are_ignored(saved: Path, tmp_path: Path) -> None:
    edit = put("model.layers.0.self_attn.rotary_emb.inv_freq", torch.zeros(8))
    model, plain = read(edited(saved / "llama", tmp_path / "edited", edit)), read(saved / "llama")
    assert same_weights(model, plain)
    assert torch.equal(model.model.rotary_emb.inv_freq, plain.model.rotary_emb.inv_freq)
    assert plain.model.rotary_emb.inv_freq.all()


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ValueError, match="is a pickle; convert the model to safetensors"):
        has_weights(tmp_path)


def test_a_tensor_is_converted_to_the_type_of_its_place(saved: Path) -> None:
    name = "model.layers.1.mlp.experts.gate_up_proj"
    half = torch.empty(8, 64, 64, dtype=torch.bfloat16)
    HfCheckpoint(saved / "glm", family_of({"model_type": "glm4_moe"})).read_into(half, name)
    plain = AutoModelForCausalLM.from_pretrained(saved / "glm", dtype=torch.float32)
    assert torch.equal(half, plain.get_parameter(name).bfloat16())


@pytest.mark.parametrize("kind", ["glm", "qwen"])
def test_experts_that_are_stored_fused_are_read(kind: str, saved: Path, tmp_path: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(saved / kind, dtype=torch.float32)
    plain.save_pretrained(tmp_path, save_original_format=False)
    assert any(name.endswith("mlp.experts.gate_up_proj") for name in load_file(tmp_path / "model.safetensors"))
    expected, found = plain.state_dict(), read(tmp_path).state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def test_other_copies_beside_the_model_are_not_part_of_it(saved: Path, tmp_path: Path) -> None:
    directory = edited(saved / "llama", tmp_path / "beside", lambda tensors: None)
    save_file({"layers.0.attention.wq.weight": torch.zeros(4, 4)}, directory / "consolidated.safetensors")
    expected = read(saved / "llama").state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in read(directory).state_dict().items())


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5])
def test_a_file_that_is_not_whole_is_named(share: float, saved: Path, tmp_path: Path) -> None:
    directory = edited(saved / "llama", tmp_path / "cut", lambda tensors: None)
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(ValueError, match=r"model\.safetensors is no whole safetensors file"):
        read(directory)


def test_a_missing_shard_is_named(saved: Path, tmp_path: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(saved / "llama", dtype=torch.float32)
    plain.save_pretrained(tmp_path, max_shard_size="100KB")
    shard = next(tmp_path.glob("model-00002*.safetensors"))
    shard.unlink()
    with pytest.raises(ValueError, match=f"{shard.name} is missing"):
        read(tmp_path)
