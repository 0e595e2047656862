"""An export holds what `from_pretrained` needs. tests/rl/learner/test_learner.py loads the exports of real learners."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig

from rl.families.registry import family_of
from rl.weights.hf_export import write_hf_export
from rl.weights.hf_reader import HfCheckpoint
from rollout.types import WeightSpec


class TwoTensors:
    """A weight source of two tensors, in one bucket or in two. The real one needs a DeepSpeed engine."""

    tensors = {"a.weight": torch.arange(6.0).reshape(2, 3), "b.weight": torch.ones(4)}  # noqa: RUF012

    def manifest(self) -> list[WeightSpec]:
        return [WeightSpec(name=n, dtype="float32", shape=tuple(t.shape)) for n, t in self.tensors.items()]

    def plan(self, max_bytes: int) -> list[list[WeightSpec]]:
        return [self.manifest()] if max_bytes >= 40 else [[spec] for spec in self.manifest()]

    def buckets(self, max_bytes: int):
        for bucket in self.plan(max_bytes):
            yield [(spec.name, self.tensors[spec.name]) for spec in bucket]


ONE = ["model.safetensors"]
TWO = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


@pytest.mark.parametrize(("shard_bytes", "files"), [(1000, ONE), (24, TWO)])
def test_an_export_holds_every_tensor_config_and_tokenizer_but_no_old_weights(tmp_path, shard_bytes, files) -> None:
    origin, target = tmp_path / "origin", tmp_path / "target"
    origin.mkdir()
    for name in ("tokenizer.json", "chat_template.jinja", "model.safetensors", "model.safetensors.index.json"):
        (origin / name).write_text("{}")
    write_hf_export(target, TwoTensors(), LlamaConfig(vocab_size=7), origin, 0, shard_bytes)  # type: ignore[arg-type]
    write_hf_export(target, TwoTensors(), LlamaConfig(vocab_size=7), origin, 0, shard_bytes)  # type: ignore[arg-type]
    shards = sorted(target.glob("*.safetensors"))
    assert [shard.name for shard in shards] == files
    for shard in shards:
        with safe_open(shard, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}, "transformers refuses files without"
    loaded = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    assert all(torch.equal(loaded[name], tensor) for name, tensor in TwoTensors.tensors.items())
    assert json.loads((target / "config.json").read_text())["vocab_size"] == 7
    assert (target / "tokenizer.json").is_file() and (target / "chat_template.jinja").is_file()
    index = target / "model.safetensors.index.json"
    assert index.exists() == (files == TWO)
    if files == TWO:
        assert json.loads(index.read_text()) == {
            "metadata": {"total_size": 40},
            "weight_map": {name: shard.name for shard in shards for name in load_file(shard)},
        }


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    write_hf_export(tmp_path / "target", TwoTensors(), LlamaConfig(), tmp_path, 1, 1000)  # type: ignore[arg-type]
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("shard_bytes", [1000, 24])
def test_tensors_that_are_not_trained_are_taken_over(tmp_path: Path, shard_bytes: int) -> None:
    """A multi-token-prediction layer of GLM-4.5, which the trainer leaves out."""
    config = {"model_type": "glm4_moe", "n_routed_experts": 8, "num_hidden_layers": 3, "num_nextn_predict_layers": 1}
    family = family_of(config)
    origin, target = tmp_path / "origin", tmp_path / "target"
    origin.mkdir()
    layer = {"model.layers.3.eh_proj.weight": torch.ones(4, 8), "model.layers.3.enorm.weight": torch.arange(4.0)}
    save_file(layer | {"model.layers.2.mlp.gate.weight": torch.zeros(2)}, origin / "model.safetensors")
    kept = HfCheckpoint(origin, family).matching(family.kept(config))
    assert kept.keys() == layer.keys()
    write_hf_export(target, TwoTensors(), LlamaConfig(), origin, 0, shard_bytes, kept)  # type: ignore[arg-type]
    again = HfCheckpoint(target, family).matching([""])
    assert again.keys() == TwoTensors.tensors.keys() | layer.keys()
    for name, tensor in {**layer, **TwoTensors.tensors}.items():
        assert torch.equal(load_file(again[name])[name], tensor)
    index = json.loads((target / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 40 + sum(tensor.nbytes for tensor in layer.values())
    assert family.exported_config(config)["num_nextn_predict_layers"] == 0
    assert family.exported_config_with_kept(config)["num_nextn_predict_layers"] == 1
