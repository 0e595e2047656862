"""Weight buckets in shared memory, for trainer and engines on one host without GPUs.

The shared memory is an anonymous file (memfd) that receivers open through the sender's /proc entry. It has no name in
/dev/shm, so there is nothing to unlink or to sweep: the kernel frees it with the last process that holds it, after
kill -9 as well.
"""

from __future__ import annotations

import mmap
import os
import secrets
import struct
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from rollout.transfer.bucket import (
    DTYPES,
    Bucket,
    ReceiverPlace,
    Sender,
    SenderPlace,
    Tensors,
    Transport,
    describe,
    digests,
)
from rollout.types import WeightSpec

_ALIGNMENT = 64
_HEADER = struct.Struct("<QQ")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShmBucket(Bucket):
    """A bucket in the file with descriptor `fd` of process `pid`, which holds `size` bytes.

    The file starts with (`nonce`, `sequence`), so a reader notices a recycled process id, and a segment that the
    sender has reused too early. The bytes of `tensors[i]` begin at `offsets[i]`.
    """

    pid: int
    fd: int
    nonce: int
    size: int
    offsets: tuple[int, ...]


class Shm(Transport):
    """The transport `shm`."""

    def sender(self, place: SenderPlace) -> ShmSender:
        return ShmSender(place.run_id)

    def receiver(self, place: ReceiverPlace) -> ShmReceiver:
        return ShmReceiver()


class ShmReceiver:
    """Reads buckets; with tensor parallelism every worker reads the full tensors."""

    def join(self, membership: dict[str, Any]) -> None:
        """Shared memory needs no rendezvous."""

    def receive(self, bucket: ShmBucket, load: Callable[[list[tuple[str, Tensor]]], None]) -> None:
        load(read_bucket(bucket))

    def close(self) -> None:
        """Nothing is held."""


class ShmSender(Sender):
    """Writes buckets to one anonymous shared-memory file, each over the one before."""

    def __init__(self, run_id: str) -> None:
        self._fd: int | None = os.memfd_create(f"sluice-{run_id}")
        self._nonce = secrets.randbits(64)
        self._sequence = 0

    def send(self, bucket: Tensors, verify: bool = False) -> ShmBucket:
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
        if os.fstat(self._fd).st_size < end:  # never shorter: who still reads the old bucket would die of SIGBUS
            os.ftruncate(self._fd, end)
        with mmap.mmap(self._fd, end) as segment:
            # Write the header first, so that a receiver that still reads the bucket before this one finds it changed.
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
            digests=digests(bucket, verify),
        )
        self._sequence += 1
        return sent

    def close(self) -> None:
        """Free the memory. Idempotent."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def read_bucket(bucket: ShmBucket) -> list[tuple[str, Tensor]]:
    """Return copies of the bucket's tensors, on CPU.

    vLLM buffers tensors until their layer is complete, which is longer than the segment stays unchanged.

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
