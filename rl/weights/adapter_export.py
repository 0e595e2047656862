"""An adapter as a directory in PEFT's format, and the hash that tells its base model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

from rollout.transfer.bucket import digest
from rollout.transfer.content import content_hash

if TYPE_CHECKING:
    from peft import LoraConfig

    from rl.weights.source import WeightSource

BUCKET_BYTES = 1 << 28


def write_adapter(directory: Path, source: WeightSource, config: LoraConfig, rank: int) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors`. A collective; only rank 0 writes.

    Args:
        source: of the part `adapter`.
    """
    tensors: dict[str, torch.Tensor] = {}
    for bucket in source.buckets(BUCKET_BYTES):
        if rank == 0:
            tensors |= {name: tensor.cpu().clone() for name, tensor in bucket}
    if rank == 0:
        directory.mkdir(parents=True, exist_ok=True)
        config.save_pretrained(str(directory))
        save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})


def hash_of(source: WeightSource, rank: int) -> str:
    """The `content_hash` of all that a source streams. A collective; rank 0 computes it for all."""
    digests: dict[str, str] = {}
    for bucket in source.buckets(BUCKET_BYTES):
        digests |= {name: digest(tensor) for name, tensor in bucket} if rank == 0 else {}
    found = [content_hash(digests)]
    torch.distributed.broadcast_object_list(found, src=0)
    return found[0]
