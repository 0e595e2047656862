"""Export a Hugging Face checkpoint that `AutoModelForCausalLM.from_pretrained` and vLLM load, bucket by bucket."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import PreTrainedConfig

if TYPE_CHECKING:
    from rl.weights.source import WeightSource

SHARD_BYTES = 1 << 30
"""Upper bound on the tensors in one exported safetensors file; a larger tensor gets a file alone. An export gathers one
file's tensors at a time, and rank 0 copies them to the CPU."""

_NOT_COPIED = {"config.json", "model.safetensors.index.json", "pytorch_model.bin.index.json"}
_COPIED_SUFFIXES = {".json", ".jinja", ".model", ".txt", ".tiktoken"}


def write_hf_export(
    directory: Path,
    source: WeightSource,
    config: PreTrainedConfig,
    origin: Path,
    rank: int,
    shard_bytes: int,
    kept: Mapping[str, Path] | None = None,
) -> None:
    """Write the config, the tokenizer files of `origin` and sharded safetensors. A collective; only rank 0 writes.

    Args:
        kept: tensors that were not trained and are taken over, each with the file that holds it.
    """
    plan = source.plan(shard_bytes)
    if rank == 0:
        directory.mkdir(parents=True, exist_ok=True)
        config.save_pretrained(directory)
        _copy_tokenizer(origin, directory)
    weight_map: dict[str, str] = {}
    for index, bucket in enumerate(source.buckets(shard_bytes)):
        file = _shard_name(index, len(plan))
        weight_map.update((name, file) for name, _ in bucket)
        if rank == 0:
            save_file({name: _own(tensor) for name, tensor in bucket}, directory / file, metadata={"format": "pt"})
    total = sum(spec.nbytes for spec in source.manifest())
    if rank == 0 and kept:
        for index, tensors in enumerate(_read(kept, shard_bytes)):
            file = f"model-kept-{index + 1:05d}.safetensors"
            weight_map.update(dict.fromkeys(tensors, file))
            total += sum(tensor.nbytes for tensor in tensors.values())
            save_file(tensors, directory / file, metadata={"format": "pt"})
    if rank == 0 and len(set(weight_map.values())) > 1:
        index_json = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index_json, indent=2, sort_keys=True))


def _read(tensors: Mapping[str, Path], shard_bytes: int) -> Iterator[dict[str, torch.Tensor]]:
    """The values of tensors by name, in parts of about `shard_bytes`."""
    part: dict[str, torch.Tensor] = {}
    for name, file in sorted(tensors.items()):
        with safe_open(file, framework="pt") as opened:
            part[name] = opened.get_tensor(name)
        if sum(tensor.nbytes for tensor in part.values()) >= shard_bytes:
            yield part
            part = {}
    if part:
        yield part


def _shard_name(index: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{index + 1:05d}-of-{count:05d}.safetensors"


def _own(tensor: torch.Tensor) -> torch.Tensor:
    """A copy on the CPU with its own storage: safetensors refuses tensors that share memory."""
    return tensor.cpu().clone(memory_format=torch.contiguous_format)


def _copy_tokenizer(origin: Path, directory: Path) -> None:
    for file in origin.iterdir():
        if file.suffix in _COPIED_SUFFIXES and file.name not in _NOT_COPIED:
            shutil.copyfile(file, directory / file.name)
