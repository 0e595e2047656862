"""Checks of a model directory that need no torch: its config.json, its weight files and its tokenizer.

What is not on this machine is not looked at; the run's own processes then find the problems.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rewards.errors import listed, one_line
from rewards.extension import nearest
from rl.config import Recipe
from rl.families.registry import refuse_quantised
from rl.recipe.checks import Problem

SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
"""Keys of a config.json that must be positive integers where they are given."""
COUNTS = ("num_key_value_heads", "n_routed_experts", "num_experts", "num_local_experts", "num_experts_per_tok")
"""Keys that must be integers of at least 0, or null."""
_POINTER = b"version https://git-lfs"
_KEY = "model.path"


def model_problems(recipe: Recipe) -> Iterator[Problem]:
    """The problems of the recipe's model, if it is a local directory or file."""
    directory = Path(recipe.model.path)
    if os.path.isfile(directory):
        yield Problem(_KEY, f"{_KEY}={directory} is a file; give the directory that holds the model's config.json")
    if not os.path.isdir(directory):
        return
    try:
        config = _config(directory)
        _check_config(config)
        _check_weights(directory)
        _check_tokenizer(directory, config)
    except (ValueError, OSError) as error:
        yield Problem(_KEY, f"{_KEY}={directory}: {one_line(str(error), 400)}")
        return
    yield from _indivisible(config, recipe.inference.widths)
    if recipe.lora is not None and recipe.lora.targets is not None:
        yield from _unknown_targets(directory, recipe.lora.targets)


def _config(directory: Path) -> Mapping[str, Any]:
    path = directory / "config.json"
    if not path.is_file():
        raise ValueError("there is no config.json; give a Hugging Face model directory")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"config.json cannot be read: {error}") from None
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ValueError("config.json names no model_type, so it is not that of a model")
    return config


def _check_config(config: Mapping[str, Any]) -> None:
    for keys, least in ((SIZES, 1), (COUNTS, 0)):
        for key in keys:
            value = config.get(key)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
                raise ValueError(f"config.json says {key}={value!r:.50}, which must be an integer of at least {least}")
    refuse_quantised(config)
    if config.get("n_shared_experts") == 0:
        raise ValueError("config.json says n_shared_experts=0, and DeepSpeed's experts need at least one shared expert")


def _indivisible(config: Mapping[str, Any], widths: Sequence[int]) -> Iterator[Problem]:
    """Engine widths by which vLLM cannot divide the model's attention heads. Fewer key-value heads than GPUs are
    repeated."""
    heads = config.get("num_attention_heads")
    if not isinstance(heads, int):
        return
    of_keys = config.get("num_key_value_heads") or heads
    fitting = [width for width in range(1, heads + 1) if _divides(width, heads, of_keys)]
    for width in sorted({*widths} - {*fitting}):
        yield Problem(
            "inference.tensor_parallel",
            f"inference.tensor_parallel={width} does not divide the {heads} attention heads ({of_keys} of keys and "
            f"values) of {_KEY}; what fits: {', '.join(map(str, fitting))}",
        )


def _divides(width: int, heads: int, of_keys: int) -> bool:
    return heads % width == 0 and (of_keys % width == 0 or width % of_keys == 0)


def _check_weights(directory: Path) -> None:
    for file in sorted(directory.glob("*.safetensors")):
        with file.open("rb") as content:
            if content.read(len(_POINTER)) == _POINTER:
                raise ValueError(f"{file.name} is a Git LFS pointer and not the weights: run `git lfs pull` there")


def _unknown_targets(directory: Path, targets: Sequence[str]) -> Iterator[Problem]:
    """Adapter targets that are in no name of the checkpoint's tensors. Those that are may still be no linear layer,
    which the trainer finds when it builds the model."""
    names = {name.removesuffix(".weight") for name in _tensor_names(directory) if name.endswith(".weight")}
    absent = [target for target in targets if not any(f".{name}".endswith(f".{target}") for name in names)]
    if names and absent:
        leaves = sorted({name.rpartition(".")[2] for name in names if not name.rpartition(".")[2].endswith("norm")})
        hints = "".join(nearest(target, leaves) for target in absent)
        what = f"{directory} has no layer {listed(absent)}{hints or '.'} Its layers are {listed(leaves)}"
        yield Problem("lora.targets", f"lora.targets: {what}")


def _tensor_names(directory: Path) -> list[str]:
    from safetensors import SafetensorError, safe_open

    found = []
    for file in directory.glob("*.safetensors"):
        try:
            with safe_open(file, framework="numpy") as tensors:
                found += tensors.keys()
        except (SafetensorError, OSError):
            return []  # the trainer says which file is damaged, and how
    return found


def _check_tokenizer(directory: Path, config: Mapping[str, Any]) -> None:
    size = config.get("vocab_size")
    try:
        tokenizer = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
        vocabulary = tokenizer["model"]["vocab"]
        ids = [*(vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary)))]
        ids += [token["id"] for token in tokenizer.get("added_tokens", ())]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return  # there is none of this kind
    if size is not None and ids and max(ids) >= size:
        raise ValueError(
            f"its tokenizer has ids up to {max(ids)}, and its embedding only {size} rows (vocab_size): they are not "
            "of the same model"
        )
