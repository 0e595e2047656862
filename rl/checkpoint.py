"""What a checkpoint is on disk, apart from DeepSpeed's own shards: RNG state, Hugging Face export, atomic publishing.

Owns three things: capturing and restoring the generators of one rank as JSON (no pickle), writing an export that
`AutoModelForCausalLM.from_pretrained` and vLLM load, streamed bucket by bucket, and `CheckpointStore`, which makes a
checkpoint visible only when it is complete. It knows nothing of DeepSpeed, Ray or the driver's ledger.
"""

from __future__ import annotations

import base64
import json
import os
import random
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import PreTrainedConfig

if TYPE_CHECKING:
    from rl.weights import WeightSource

SHARD_BYTES = 1 << 30
"""Size of an exported safetensors file, and so the most that an export holds in memory."""

_NOT_COPIED = {"config.json", "model.safetensors.index.json", "pytorch_model.bin.index.json"}
_COPIED_SUFFIXES = {".json", ".jinja", ".model", ".txt", ".tiktoken"}


def rng_state() -> dict[str, Any]:
    """The state of Python's, NumPy's and PyTorch's global generators, as JSON."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, internal, gauss_next = random.getstate()
    state = {
        "python": [version, list(internal), gauss_next],
        "numpy": [kind, np.asarray(keys).tolist(), position, has_gauss, gauss],
        "torch": _encode(torch.get_rng_state()),
    }
    if torch.cuda.is_available():
        state["cuda"] = _encode(torch.cuda.get_rng_state())
    return state


def restore_rng(state: dict[str, Any]) -> None:
    """Set the generators to what `rng_state` returned."""
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(_decode(state["torch"]))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(_decode(state["cuda"]))


def write_hf_export(
    directory: Path, source: WeightSource, config: PreTrainedConfig, origin: Path, rank: int, shard_bytes: int
) -> None:
    """Write config, tokenizer files of `origin` and sharded safetensors. A collective; only rank 0 writes."""
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
    if rank == 0 and len(plan) > 1:
        total = sum(spec.nbytes for spec in source.manifest())
        index_json = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index_json, indent=2, sort_keys=True))


class CheckpointStore:
    """Checkpoints of one run: `<root>/step-000012`, complete or not there at all, the newest `keep` of them.

    Written under a hidden name, synced to disk and renamed; a crash at any point leaves the older ones as they were.
    """

    def __init__(self, root: Path, keep: int) -> None:
        self._root, self._keep = root, keep

    def begin(self, step: int) -> Path:
        """An empty directory to write into."""
        partial = self._partial(step)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        return partial

    def publish(self, step: int) -> Path:
        """Make the checkpoint of `step` visible, then delete what is older than the newest `keep` and leftovers."""
        partial, final = self._partial(step), self._root / f"step-{step:06d}"
        _sync_tree(partial)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        _sync(self._root)
        for old in self._complete()[: -self._keep]:
            shutil.rmtree(old)
        for leftover in self._root.glob(".step-*.partial"):
            shutil.rmtree(leftover)
        return final

    def latest(self) -> Path | None:
        """The newest complete checkpoint."""
        complete = self._complete()
        return complete[-1] if complete else None

    def _complete(self) -> list[Path]:
        return sorted(self._root.glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))

    def _partial(self, step: int) -> Path:
        return self._root / f".step-{step:06d}.partial"


def _shard_name(index: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{index + 1:05d}-of-{count:05d}.safetensors"


def _own(tensor: torch.Tensor) -> torch.Tensor:
    """On the CPU and in storage of its own: safetensors refuses tensors that share memory."""
    return tensor.cpu().clone(memory_format=torch.contiguous_format)


def _copy_tokenizer(origin: Path, directory: Path) -> None:
    for file in origin.iterdir():
        if file.suffix in _COPIED_SUFFIXES and file.name not in _NOT_COPIED:
            shutil.copyfile(file, directory / file.name)


def _sync_tree(root: Path) -> None:
    for folder, _, files in os.walk(root, topdown=False):
        for file in files:
            _sync(Path(folder) / file)
        _sync(Path(folder))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _encode(tensor: torch.Tensor) -> str:
    return base64.b64encode(tensor.cpu().numpy().tobytes()).decode()


def _decode(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
