"""What every weight transport shares: buckets of full tensors, their description and their digests."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from rollout.types import WeightSpec

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Bucket(Protocol):
    """The small picklable description of a bucket: what an engine needs in order to load it."""

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def sequence(self) -> int: ...

    @property
    def digests(self) -> tuple[str, ...]:
        """What the tensors must hash to, in the order of `names`; empty when the push is not verified."""
        ...


class Sender(Protocol):
    """Rank 0's end of a transport. One bucket travels at a time: send(k+1) needs bucket k loaded everywhere."""

    def send(self, bucket: Sequence[tuple[str, Tensor]], verify: bool = False) -> Bucket:
        """The description that makes an engine load the bucket; with `verify` its workers check what arrives."""
        ...

    def abandon(self) -> Exception | None:
        """A push failed: the last bucket may not be received any more. Returns what failed on this side, if it did."""
        ...

    def close(self) -> None: ...


def describe(name: str, tensor: Tensor) -> WeightSpec:
    """Raises ValueError for a dtype that weights do not travel in."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise ValueError(f"{name} is {dtype}: weights travel as one of {', '.join(DTYPES)}")
    return WeightSpec(name=name, dtype=dtype, shape=tuple(tensor.shape))


def digest(tensor: Tensor) -> str:
    """sha256 of the tensor's elements in row-major order, as hex; copies to the CPU what is not there."""
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(flat.numpy().data).hexdigest()


def check_digests(bucket: Bucket, received: Sequence[tuple[str, Tensor]]) -> None:
    """Compare received tensors, any part of the bucket, with what the sender held. Nothing where it sent no digests.

    Raises:
        ValueError: a tensor differs: it was damaged, or exchanged with another one, on the way.
    """
    if not bucket.digests:
        return
    sent = dict(zip(bucket.names, bucket.digests, strict=True))
    damaged = [name for name, tensor in received if digest(tensor) != sent[name]]
    if damaged:
        raise ValueError(f"weight bucket {bucket.sequence}: not the bytes that were sent: {', '.join(damaged)}")
