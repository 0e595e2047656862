"""Weight buckets in GPU memory that trainer and engine share, for engines on the trainer's own GPUs.

NCCL joins no two processes on one GPU. As in vLLM's own transfer of this kind, every trainer rank lends the engine's
worker on its GPU a handle of the same bytes, since every rank has gathered the same full tensors. Rank 0 collects the
handles by the GPUs' UUIDs and sends them all. A worker opens the one of its own GPU, and copies the tensors, because
vLLM keeps some until their layer is complete.

A bucket is packed into a buffer of its own, which stays until the next but one: by then every engine has loaded it.
PyTorch frees memory that was lent only when it has been opened and let go as often as it was lent. So every rank must
have an engine's worker on its GPU, and what is lent after a push has failed is taken back. The one bucket at which it
failed stays allocated where a worker did not open it.
This has not run on GPUs yet; tests/rollout/transfer/test_ipc.py runs it on a GPU where it finds one, and between
processes on a CPU with handles of shared memory.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

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
)

log = logging.getLogger(__name__)

ALIGNMENT = 16
"""Bytes: a tensor of any dtype that weights travel in may begin there."""

Handle = tuple[Any, ...]
"""What a process needs to open memory of another one; empty from a rank that lends nothing."""

Lent = Handle | str
"""A handle, or why there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IpcBucket(Bucket):
    """A bucket that lies packed in the memory of every GPU that `handles` names."""

    handles: Mapping[str, Lent]


class Memory(Protocol):
    """The memory of one GPU, as a process lends it or opens what another has lent."""

    @property
    def place(self) -> str:
        """A name of the GPU that all processes use."""
        ...

    def lend(self, packed: Tensor) -> Handle: ...

    def take_back(self, handle: Handle) -> None:
        """Let memory be freed although nobody has opened it."""
        ...

    def open(self, handle: Handle) -> Tensor: ...


class CudaMemory:
    """The memory of this process's GPU with that index."""

    def __init__(self, device: int) -> None:
        self._device = device

    @property
    def place(self) -> str:
        return str(torch.cuda.get_device_properties(self._device).uuid)

    def lend(self, packed: Tensor) -> Handle:
        from torch.multiprocessing.reductions import reduce_tensor

        torch.cuda.current_stream(self._device).synchronize()  # what was packed must be there before it is read
        return tuple(reduce_tensor(packed)[1])

    def take_back(self, handle: Handle) -> None:
        counter, offset = handle[11:13]
        torch.UntypedStorage._release_ipc_counter(counter, offset, device=self._device)

    def open(self, handle: Handle) -> Tensor:
        from torch.multiprocessing.reductions import rebuild_cuda_tensor

        arguments = list(handle)
        arguments[6] = self._device  # the index of the GPU, which the lender's process may count otherwise
        opened: Tensor = rebuild_cuda_tensor(*arguments)
        return opened


class Ipc(Transport):
    """The transport `ipc`."""

    def sender(self, place: SenderPlace) -> IpcSender:
        return IpcSender(CudaMemory(torch.cuda.current_device()), _gathered)

    def follower(self, place: SenderPlace) -> IpcSender:
        return IpcSender(CudaMemory(torch.cuda.current_device()), _gathered, first=False)

    def receiver(self, place: ReceiverPlace) -> IpcReceiver:
        return IpcReceiver(CudaMemory(place.device.index or 0))


class IpcReceiver:
    """Opens what the trainer's rank on this worker's GPU lends."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    def join(self, membership: dict[str, Any]) -> None:
        """A handle needs no rendezvous."""

    def receive(self, bucket: IpcBucket, load: Callable[[list[tuple[str, Tensor]]], None]) -> None:
        """
        Raises:
            ValueError: no trainer rank has this worker's GPU, or that rank could not lend the bucket.
        """
        handle = bucket.handles.get(self._memory.place)
        if handle is None:
            raise ValueError(
                f"weight bucket {bucket.sequence}: no trainer rank is on GPU {self._memory.place}, and ipc reaches "
                f"{', '.join(bucket.handles)} only: use placement=colocated, or weight_sync.transport=nccl"
            )
        if isinstance(handle, str):
            raise ValueError(f"weight bucket {bucket.sequence}: the rank on GPU {self._memory.place} failed: {handle}")
        packed = self._memory.open(handle)
        load([(name, view.clone()) for name, view in _unpacked(packed, bucket)])

    def close(self) -> None:
        """Nothing is held."""


class IpcSender(Sender):
    """One trainer rank's part. `collect` returns what every rank has given to it, rank 0 first; it is a collective."""

    def __init__(
        self, memory: Memory, collect: Callable[[tuple[str, Lent]], Mapping[str, Lent]], *, first: bool = True
    ) -> None:
        """`first`: whether this is rank 0."""
        self._memory, self._collect, self._first = memory, collect, first
        self._lent: deque[Tensor] = deque()
        self._sequence = 0

    def send(self, bucket: Tensors, digests: tuple[str, ...] = ()) -> IpcBucket:
        """Lend the bucket, with all other ranks, which `follow`."""
        handles, failure = self._lend(bucket)
        if failure is not None:
            raise failure
        sent = IpcBucket(
            sequence=self._sequence,
            tensors=tuple(describe(name, tensor) for name, tensor in bucket),
            digests=digests,
            handles=handles,
        )
        self._sequence += 1
        return sent

    def follow(self, bucket: Tensors) -> None:
        """Lend the bucket, too. On rank 0, whose push has failed, say to all ranks that nobody will open it."""
        if self._first:
            self._collect((self._memory.place, ()))
        else:
            self._lend(bucket)

    def rest(self) -> None:
        """Let go of what was lent, when rank 0 does so: it knows that the engines have loaded the last bucket."""
        self._collect((self._memory.place, ()))
        self._lent.clear()

    def close(self) -> None:
        self._lent.clear()

    def _lend(self, bucket: Tensors) -> tuple[Mapping[str, Lent], Exception | None]:
        """Return every rank's handle, and why this rank has none. Whatever fails here, the others wait in `collect`."""
        while len(self._lent) > 1:  # every engine has loaded it: else rank 0 would not have gone on to this bucket
            self._lent.popleft()
        lent, failure = self._try_to_lend(bucket)
        handles = self._collect((self._memory.place, lent))
        if next(iter(handles.values())) == () and isinstance(lent, tuple):
            self._memory.take_back(lent)
        return handles, failure

    def _try_to_lend(self, bucket: Tensors) -> tuple[Lent, Exception | None]:
        try:
            packed = _packed(bucket)
            handle = self._memory.lend(packed)
        except Exception as error:
            log.exception("weight bucket %d cannot be lent", self._sequence)
            return f"{type(error).__name__}: {error}", error
        self._lent.append(packed)
        return handle, None


def _gathered(mine: tuple[str, Lent]) -> Mapping[str, Lent]:
    everybody: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everybody, mine)
    return dict(everybody)


def _packed(bucket: Tensors) -> Tensor:
    """The bytes of all tensors, one after the other, each from a multiple of ALIGNMENT on."""
    sizes = [_aligned(tensor.nbytes) for _, tensor in bucket]
    device = bucket[0][1].device if bucket else "cpu"
    packed = torch.empty(max(sum(sizes), 1), dtype=torch.uint8, device=device)
    start = 0
    for (_, tensor), size in zip(bucket, sizes, strict=True):
        packed[start : start + tensor.nbytes] = tensor.detach().contiguous().view(-1).view(torch.uint8)
        start += size
    return packed


def _unpacked(packed: Tensor, bucket: Bucket) -> list[tuple[str, Tensor]]:
    views, start = [], 0
    for spec in bucket.tensors:
        flat = packed[start : start + spec.nbytes].view(DTYPES[spec.dtype])
        views.append((spec.name, flat[: prod(spec.shape)].view(spec.shape)))
        start += _aligned(spec.nbytes)
    return views


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
