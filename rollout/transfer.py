"""How gathered weights travel from trainer rank 0 to the inference engines: the sender's half and the wire format.

A *bucket* is a list of full tensors under Hugging Face checkpoint names. A sender turns it into a small picklable
description, and the description is the argument of `Inference.load_bucket`. On one host without GPUs the bytes lie in
shared memory (`ShmSender`), between GPUs they go through NCCL (`rollout.transfer_nccl`). Importing this module needs
torch but never vllm: the trainer's processes use it.

The shared memory is an anonymous file (memfd) that receivers open through the sender's /proc entry. It has no name in
/dev/shm, so there is nothing to unlink or to sweep: the kernel frees it with the last process that holds it, after
kill -9 as well.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import secrets
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal, Protocol

import torch
from torch import Tensor

from rollout.config import WeightSyncConfig
from rollout.types import Device, WeightSpec

_ALIGNMENT = 64
_HEADER = struct.Struct("<QQ")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

Transport = Literal["shm", "nccl"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShmBucket:
    """Where a bucket lies: file descriptor `fd` of process `pid`, which holds `size` bytes.

    The file starts with (`nonce`, `sequence`), so a reader notices a recycled process id, and a segment that the
    sender has reused too early. `offsets[i]` is where the bytes of `tensors[i]` begin, `digests[i]` what they must
    hash to; `digests` is empty when the push is not verified.
    """

    pid: int
    fd: int
    nonce: int
    sequence: int
    size: int
    tensors: tuple[WeightSpec, ...]
    offsets: tuple[int, ...]
    digests: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(spec.name for spec in self.tensors)


@dataclass(frozen=True, slots=True, kw_only=True)
class NcclBucket:
    """A bucket that trainer rank 0 broadcasts now. An engine joins the group of `rendezvous` on its first bucket."""

    rendezvous: NcclRendezvous
    sequence: int
    tensors: tuple[WeightSpec, ...]
    digests: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(spec.name for spec in self.tensors)


@dataclass(frozen=True, slots=True, kw_only=True)
class NcclRendezvous:
    """The sender is rank 0; the workers of the replicas follow, replica by replica."""

    address: str
    port: int
    replicas: int
    tensor_parallel: int
    buffer_bytes: int

    @property
    def world_size(self) -> int:
        return 1 + self.replicas * self.tensor_parallel

    def first_rank(self, replica: int) -> int:
        """The rank of a replica's first worker; vLLM adds a worker's own rank to it."""
        return 1 + replica * self.tensor_parallel


Bucket = ShmBucket | NcclBucket


class Sender(Protocol):
    """Rank 0's end of a transport. One bucket travels at a time: send(k+1) needs bucket k loaded everywhere."""

    def send(self, bucket: Sequence[tuple[str, Tensor]], verify: bool = False) -> Bucket:
        """The description that makes an engine load the bucket; with `verify` its workers check what arrives."""
        ...

    def abandon(self) -> Exception | None:
        """A push failed: the last bucket may not be received any more. Returns what failed on this side, if it did."""
        ...

    def close(self) -> None: ...


def resolve_transport(sync: WeightSyncConfig, device: Device) -> Transport:
    """`auto` is nccl where the engines have GPUs and shm where they have none."""
    if sync.transport == "auto":
        return "nccl" if device == "cuda" else "shm"
    if sync.transport == "nccl" and device == "cpu":
        raise ValueError("weight_sync.transport=nccl needs GPUs and this run has none: use auto or shm")
    return sync.transport


def make_sender(
    sync: WeightSyncConfig,
    run_id: str,
    device: Device,
    replicas: int = 1,
    tensor_parallel: int = 1,
    address: str | None = None,
) -> Sender:
    """The sender of trainer rank 0.

    Args:
        replicas, tensor_parallel: the engines (nccl's group size).
        address: where engines reach this process (nccl); None when all of them run on this host.
    """
    if resolve_transport(sync, device) == "shm":
        return ShmSender(run_id)
    from rollout.transfer_nccl import NcclSender

    return NcclSender(sync, replicas=replicas, tensor_parallel=tensor_parallel, address=address)


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


class ShmSender:
    """Writes buckets to one anonymous shared-memory file, each over the one before."""

    def __init__(self, run_id: str) -> None:
        self._fd: int | None = os.memfd_create(f"sluice-{run_id}")
        self._nonce = secrets.randbits(64)
        self._sequence = 0

    def send(self, bucket: Sequence[tuple[str, Tensor]], verify: bool = False) -> ShmBucket:
        """Copy the tensors (any device) into shared memory.

        Raises:
            RuntimeError: after close().
        """
        if self._fd is None:
            raise RuntimeError("this sender is closed: make a new one")
        specs = tuple(describe(name, tensor) for name, tensor in bucket)
        offsets, end = [], _aligned(_HEADER.size)
        for spec in specs:
            offsets.append(end)
            end = _aligned(end + spec.nbytes)
        os.ftruncate(self._fd, end)
        with mmap.mmap(self._fd, end) as segment:
            # The header is first: whoever still reads the bucket before the last one finds it changed.
            segment[: _HEADER.size] = _HEADER.pack(self._nonce, self._sequence)
            for (_, tensor), spec, offset in zip(bucket, specs, offsets, strict=True):
                _view(segment, spec, offset).copy_(tensor.detach())
        sent = ShmBucket(
            pid=os.getpid(),
            fd=self._fd,
            nonce=self._nonce,
            sequence=self._sequence,
            size=end,
            tensors=specs,
            offsets=tuple(offsets),
            digests=tuple(digest(tensor) for _, tensor in bucket) if verify else (),
        )
        self._sequence += 1
        return sent

    def abandon(self) -> Exception | None:
        """Nothing to undo: whoever reads the bucket after the next one was sent is told by its header."""
        return None

    def close(self) -> None:
        """Free the memory. Idempotent."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def read_bucket(bucket: ShmBucket) -> list[tuple[str, Tensor]]:
    """Copies of the bucket's tensors, on CPU.

    Copies, because vLLM buffers what it was given until a layer is complete, longer than the segment stays unchanged.

    Raises:
        RuntimeError: the sender has exited, or has overwritten the bucket.
    """
    path = f"/proc/{bucket.pid}/fd/{bucket.fd}"
    try:
        fd = os.open(path, os.O_RDWR)
    except OSError as error:
        raise RuntimeError(
            f"weight bucket {bucket.sequence}: its sender (pid {bucket.pid}) is gone: {error}"
        ) from error
    try:
        if os.fstat(fd).st_size < bucket.size:
            raise RuntimeError(f"weight bucket {bucket.sequence}: {path} is another file: its sender is gone")
        with mmap.mmap(fd, bucket.size) as segment:
            _check_header(segment, bucket)
            tensors = [
                (spec.name, _view(segment, spec, offset).clone())
                for spec, offset in zip(bucket.tensors, bucket.offsets, strict=True)
            ]
            _check_header(segment, bucket)
    finally:
        os.close(fd)
    return tensors


def _check_header(segment: mmap.mmap, bucket: ShmBucket) -> None:
    found = _HEADER.unpack(segment[: _HEADER.size])
    if found != (bucket.nonce, bucket.sequence):
        raise RuntimeError(
            f"weight bucket {bucket.sequence} was overwritten (its segment holds bucket {found[1]}): "
            "a bucket must be loaded before the next one is sent"
        )


def _view(segment: mmap.mmap, spec: WeightSpec, offset: int) -> Tensor:
    dtype = DTYPES[spec.dtype]
    count = prod(spec.shape)
    if count == 0:
        return torch.empty(spec.shape, dtype=dtype)
    return torch.frombuffer(segment, dtype=dtype, count=count, offset=offset).reshape(spec.shape)


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGNMENT) * _ALIGNMENT
