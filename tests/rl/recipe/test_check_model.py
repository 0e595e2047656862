"""What is wrong with a model directory is told with the recipe, by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rl.recipe.check_model import model_problems
from tests.rl.recipe.test_checks import recipe
from tests.support import MODEL


def problems(path: Path) -> list[str]:
    return [problem.text for problem in model_problems(recipe({"model": {"path": str(path)}}))]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    shutil.copytree(MODEL, tmp_path / "model")
    return tmp_path / "model"


def configured(model: Path, **changes: Any) -> Path:
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")
    return model


def test_a_sound_model_and_one_elsewhere_have_no_problems(model: Path) -> None:
    assert problems(model) == problems(Path("owner/name")) == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "config.json cannot be read"),
        (b"[]", "names no model_type"),
        (b"{}", "names no model_type"),
        ('{"model_type": "llama"}'.encode("utf-16"), "config.json cannot be read"),
        (b"[" * 100_000, "config.json cannot be read"),
        (b'{"model_type": 5}', "names no model_type"),
    ],
)
def test_a_broken_config(model: Path, content: bytes, reason: str) -> None:
    (model / "config.json").write_bytes(content)
    (text,) = problems(model)
    assert reason in text and str(model) in text and len(text) < 600 and "\n" not in text


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"vocab_size": -1}, "vocab_size=-1, which must be an integer of at least 1"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers='2'"),
        ({"n_routed_experts": "16"}, "n_routed_experts='16'"),
        ({"hidden_size": True}, "hidden_size=True"),
        ({"vocab_size": 928}, "tokenizer has ids up to 935, and its embedding only 928 rows"),
        ({"quantization_config": {"quant_method": "fp8"}}, r"the checkpoint is quantised (fp8)"),
        ({"n_shared_experts": 0}, "n_shared_experts=0"),
    ],
)
def test_a_config_that_cannot_be_trained(model: Path, changes: dict[str, Any], reason: str) -> None:
    (text,) = problems(configured(model, **changes))
    assert reason in text


def test_a_pointer_file_is_called_that(model: Path) -> None:
    (model / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    (text,) = problems(model)
    assert "model.safetensors is a Git LFS pointer" in text


def test_a_link_to_nowhere_is_told(model: Path) -> None:
    (model / "model.safetensors").symlink_to(model / "absent")
    (text,) = problems(model)
    assert "No such file" in text and "model.safetensors" in text


def test_a_path_that_is_no_model(model: Path) -> None:
    assert "is a file; give the directory" in problems(model / "config.json")[0]
    assert "there is no config.json" in problems(model.parent)[0]


@pytest.mark.parametrize(
    ("heads", "of_keys", "widths", "wrong", "fitting"),
    [
        (96, 8, (1, 8, 16), (), ""),
        (9, 3, (2, 3, 4), (2, 4), "1, 3, 9"),
        (12, None, (5,), (5,), "1, 2, 3, 4, 6, 12"),
        (6, 4, (3,), (3,), "1, 2"),
    ],
)
def test_a_width_of_engines_that_does_not_divide_the_heads(
    model: Path, heads: int, of_keys: int | None, widths: tuple[int, ...], wrong: tuple[int, ...], fitting: str
) -> None:
    path = configured(model, num_attention_heads=heads, num_key_value_heads=of_keys)
    given = {"replicas": len(widths), "tensor_parallel": widths}
    found = [*model_problems(recipe({"model": {"path": str(path)}, "inference": given}))]
    assert [problem.text.partition(" ")[0] for problem in found] == [
        f"inference.tensor_parallel={width}" for width in wrong
    ]
    assert all(problem.text.endswith(f"what fits: {fitting}") for problem in found)


def test_targets_of_an_adapter_that_no_layer_has(model: Path) -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    layer, names = np.zeros((2, 2), np.float32), ("self_attn.q_proj", "self_attn.k_proj", "input_layernorm")
    numpy.save_file({f"model.layers.0.{name}.weight": layer for name in names}, model / "model.safetensors")

    def found(*targets: str) -> list[str]:
        over = {"model": {"path": str(model)}, "lora": {"targets": targets}}
        return [problem.text for problem in model_problems(recipe(over))]

    assert found("q_proj", "self_attn.k_proj", "model.layers.0.self_attn.k_proj") == []
    (text,) = found("q_prj", "k_proj", "attn.q_proj")
    assert "has no layer attn.q_proj, q_prj; did you mean 'q_proj'?" in text and "Its layers are k_proj, q_proj" in text
    (model / "model.safetensors").write_bytes(b"\xff" * 100)
    assert found("q_prj") == [], "the trainer says what is wrong with the file"
