"""Read a Hugging Face checkpoint one tensor at a time, under the names and shapes of the model's own tensors.

The files are memory-mapped, so no more than one tensor is held. A model may fuse several tensors of its checkpoint into
one (a layer's experts); its family says which. `rl.weights.source` does the reverse: it splits the engine's tensors
into checkpoint names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rewards.errors import listed
from rl.families.family import Family


def has_weights(directory: Path) -> bool:
    """Whether a model directory holds weights. Without them a model starts from random weights.

    Raises:
        ValueError: it holds only pickled weights, which are never read, because unpickling can run any code.
    """
    if any(directory.glob("*.safetensors")):
        return True
    pickled = [*directory.glob("*.bin"), *directory.glob("*.pt"), *directory.glob("*.pth")]
    if pickled:
        raise ValueError(f"{pickled[0]} is a pickle; convert the model to safetensors (save_pretrained does)")
    return False


def weight_files(directory: Path) -> list[str]:
    """The names of the files that hold a model's weights: those of the index, or else `model.safetensors`, beside which
    other copies may lie, or else all."""
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        try:
            return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{index} is no index of a checkpoint ({type(error).__name__}: {error})") from None
    names = sorted(path.name for path in directory.glob("*.safetensors"))
    return ["model.safetensors"] if "model.safetensors" in names else names


def _opened(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except FileNotFoundError:
        raise ValueError(f"{file} is missing, and the index of the checkpoint names it") from None
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is no whole safetensors file ({error}): fetch it again") from None


class HfCheckpoint:
    """The safetensors files of one model directory."""

    def __init__(self, directory: Path, family: Family) -> None:
        self.family = family
        self._directory = directory
        opened = {file: _opened(directory / file) for file in weight_files(directory)}
        self._path_of = {name: path for path, file in opened.items() for name in file.keys()}  # noqa: SIM118
        self._file_of = {name: opened[path] for name, path in self._path_of.items()}

    def matching(self, patterns: Collection[str]) -> dict[str, Path]:
        """The stored tensors whose names match one of the regular expressions, each with its file."""
        found = {name: file for name, file in self._path_of.items() if any(re.search(p, name) for p in patterns)}
        return {name: self._directory / file for name, file in found.items()}

    def require(
        self, tensors: Mapping[str, Tensor], *, optional: Collection[str] = (), ignored: Collection[str] = ()
    ) -> None:
        """Check that the checkpoint holds these parameters and persistent buffers of a model (on any device), and no
        others.

        Args:
            optional: names that the checkpoint may hold in addition (tied weights).
            ignored: regular expressions of names that the model's class leaves out on purpose.

        Raises:
            ValueError: tensors are missing, have no place in the model, or have a different shape.
        """
        needed = {name: part for model_name, full in tensors.items() for name, part in self._parts(model_name, full)}
        missing = needed.keys() - self._file_of.keys()
        spare = self._file_of.keys() - needed.keys() - set(optional)
        unknown = [name for name in spare if not any(re.search(pattern, name) for pattern in ignored)]
        problems = [f"lacks {listed(missing)}"] if missing else []
        problems += [f"holds tensors that the model has no place for: {listed(unknown)}"] if unknown else []
        if problems:
            raise ValueError(f"{self._directory} {' and '.join(problems)}")
        for name, part in needed.items():
            shape = self._file_of[name].get_slice(name).get_shape()
            if shape != list(part.shape):
                raise ValueError(f"{name} in {self._directory} is {shape}, the model wants {list(part.shape)}")

    def read_into(self, full: Tensor, name: str) -> None:
        """Fill `full` with the values of the model's tensor `name`, converted to its type. Call `require` first."""
        with torch.no_grad():
            for stored, part in self._parts(name, full):
                part.copy_(self._file_of[stored].get_tensor(stored))

    def _parts(self, model_name: str, full: Tensor) -> Iterable[tuple[str, Tensor]]:
        """The stored tensors that fill one of the model's: itself where it is stored fused, as transformers 5 may do,
        else those that its family fuses into it."""
        return [(model_name, full)] if model_name in self._file_of else self.family.stored_parts(model_name, full)
