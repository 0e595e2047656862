"""Tensors in shared memory: one process keeps a whole weight version there, and others on its machine read it in place.

The shared memory is an anonymous file (memfd) that readers open through its owner's /proc entry. It has no name in
/dev/shm, so there is nothing to unlink or to sweep: the kernel frees it with the last process that holds it, after
kill -9 as well.
"""

from __future__ import annotations

import mmap
import os
import secrets
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from rollout.transfer.bucket import DTYPES, Bucket
from rollout.types import WeightSpec

_ALIGNMENT = 64
_HEADER = struct.Struct("<QQ")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredBucket(Bucket):
    """A bucket in the file with descriptor `fd` of process `pid` on the machine `host`: `size` bytes from `start`, in
    which those of `tensors[i]` begin at `offsets[i]`.

    The file starts with (`nonce`, `filling`), so a reader notices a recycled process id, and a segment that its owner
    has filled anew too early.
    """

    host: str
    pid: int
    fd: int
    nonce: int
    filling: int
    start: int
    size: int
    offsets: tuple[int, ...]


class Segment:
    """Shared memory that its owner fills bucket after bucket, and begins anew with `clear`. It never shrinks: who still
    reads an old bucket would die of SIGBUS. Its pages stay, since to get new ones takes longer than to fill them."""

    def __init__(self, run_id: str) -> None:
        self._fd: int | None = os.memfd_create(f"sluice-{run_id}")
        self._nonce = secrets.randbits(64)
        self._filling = 0
        self._end = 0
        self._map: mmap.mmap | None = None
        self.clear()

    def clear(self) -> None:
        """Give up what is stored. Readers of it find the header changed."""
        self._filling += 1
        self._end = mmap.PAGESIZE
        self._mapped()[: _HEADER.size] = _HEADER.pack(self._nonce, self._filling)

    def room(self, sequence: int, specs: Sequence[WeightSpec]) -> tuple[StoredBucket, Tensor]:
        """Make room for a bucket. Return its description and its bytes, [size] of uint8, which are not filled yet.

        Raises:
            RuntimeError: after close().
        """
        offsets, size = layout(specs)
        start, self._end = self._end, _aligned(self._end + size, mmap.PAGESIZE)
        mapped = self._mapped()
        assert self._fd is not None
        stored = StoredBucket(
            sequence=sequence,
            tensors=tuple(specs),
            host=host_id(),
            pid=os.getpid(),
            fd=self._fd,
            nonce=self._nonce,
            filling=self._filling,
            start=start,
            size=size,
            offsets=offsets,
        )
        return stored, torch.frombuffer(mapped, dtype=torch.uint8, count=max(size, 1), offset=start)[:size]

    def close(self) -> None:
        """Free the memory. Idempotent."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = self._map = None

    def _mapped(self) -> mmap.mmap:
        if self._fd is None:
            raise RuntimeError("this segment is closed: make a new one")
        wanted = self._end + 1  # of an empty bucket at the end, too, there must be a byte to point at
        if self._map is None or len(self._map) < wanted:
            os.ftruncate(self._fd, _aligned(wanted, mmap.PAGESIZE))
            self._map = mmap.mmap(self._fd, 0)
        return self._map


class Reader:
    """Reads buckets where they lie. It keeps the segment that it read last in its address space, from one push to the
    next: to get the pages anew takes longer than to read what is in them."""

    def __init__(self) -> None:
        self._segment: tuple[int, int, int] | None = None
        self._map: mmap.mmap | None = None

    def read(self, bucket: StoredBucket) -> list[tuple[str, Tensor]]:
        """Return the bucket's tensors, on CPU: until the owner clears its segment they do not change.

        Raises:
            RuntimeError: the owner is on another machine, has exited, or has cleared its segment.
        """
        if bucket.host != host_id():
            raise RuntimeError(
                f"weight bucket {bucket.sequence} lies in shared memory of {_node_name(bucket.host)}, and this is "
                f"{_node_name(host_id())}: weight_sync.transport=shm reaches engines on the trainer's machine only; "
                "use gloo, nccl or auto"
            )
        mapped = self._mapped(bucket)
        whole = torch.frombuffer(mapped, dtype=torch.uint8, count=max(bucket.size, 1), offset=bucket.start)
        return list(zip(bucket.names, views(whole, bucket.tensors, bucket.offsets), strict=True))

    def close(self) -> None:
        """Let go of the segment. Idempotent."""
        self._segment = self._map = None

    def _mapped(self, bucket: StoredBucket) -> mmap.mmap:
        """The segment of a bucket, which is as it was when the bucket was stored."""
        path = f"/proc/{bucket.pid}/fd/{bucket.fd}"
        try:
            fd = os.open(path, os.O_RDWR)
        except OSError as error:
            raise RuntimeError(
                f"weight bucket {bucket.sequence}: its sender (pid {bucket.pid}) is gone: {error}"
            ) from error
        try:
            if os.fstat(fd).st_size < bucket.start + bucket.size:
                raise RuntimeError(f"weight bucket {bucket.sequence}: {path} is another file: its sender is gone")
            _check_header(fd, bucket)
            segment = (bucket.pid, bucket.fd, bucket.nonce)
            if self._map is None or self._segment != segment or len(self._map) <= bucket.start + bucket.size:
                self._segment, self._map = segment, mmap.mmap(fd, 0)
            return self._map
        finally:
            os.close(fd)


def layout(specs: Sequence[WeightSpec]) -> tuple[tuple[int, ...], int]:
    """Where each tensor of a bucket begins, and how many bytes the bucket has."""
    offsets, end = [], 0
    for spec in specs:
        offsets.append(end)
        end = _aligned(end + spec.nbytes)
    return tuple(offsets), end


def views(whole: Tensor, specs: Sequence[WeightSpec], offsets: Sequence[int]) -> list[Tensor]:
    """The tensors of a bucket in its bytes, [size] of uint8."""
    return [
        whole[offset : offset + prod(spec.shape) * DTYPES[spec.dtype].itemsize]
        .view(DTYPES[spec.dtype])
        .reshape(spec.shape)
        for spec, offset in zip(specs, offsets, strict=True)
    ]


@cache
def host_id() -> str:
    """A name of this machine that holds where /proc shows the same processes: its name, boot and process namespace."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{os.uname().nodename}/{boot}/{os.readlink('/proc/self/ns/pid')}"


def _node_name(host: str) -> str:
    return host.partition("/")[0]


def _check_header(fd: int, bucket: StoredBucket) -> None:
    found = _HEADER.unpack(os.pread(fd, _HEADER.size, 0))
    if found != (bucket.nonce, bucket.filling):
        raise RuntimeError(
            f"weight bucket {bucket.sequence} was overwritten (its segment holds version {found[1]} of its content, "
            f"and it is of {bucket.filling}): a version must be applied before the next one is sent"
        )


def _aligned(offset: int, alignment: int = _ALIGNMENT) -> int:
    return -(-offset // alignment) * alignment
