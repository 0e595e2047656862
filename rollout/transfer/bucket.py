"""Parts that every weight transport shares: buckets, their digests, and the protocols of a transport's two ends.

A *bucket* is a list of full tensors under Hugging Face checkpoint names. A `Sender` in trainer rank 0 turns it into a
small picklable description (`Bucket`). The description travels to every engine, where a `Receiver` in each worker turns
it into tensors again.

Importing this module needs torch but never vllm: the trainer's processes use it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
import xxhash
from torch import Tensor

from rollout.transfer.config import TransportSettings, WeightSyncConfig
from rollout.types import DTYPE_BYTES, Device, WeightSpec

DTYPES: Mapping[str, torch.dtype] = {name: getattr(torch, name) for name in DTYPE_BYTES}

Tensors = Sequence[tuple[str, Tensor]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """The description of a bucket. Each transport derives its own, which says how a receiver gets the bytes."""

    sequence: int
    """Counts the buckets of a sender from 0."""
    tensors: tuple[WeightSpec, ...]
    digests: tuple[str, ...] = ()
    """The `digest` of each of `tensors`, in the same order; empty when the push is not verified."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(spec.name for spec in self.tensors)

    def join(self, replica: int) -> dict[str, Any] | None:
        """Return the data that a replica's receivers need to join the sender first; None if they need not join."""
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """An engine that pushes go to: its number among the run's engines, the process that it is, and its workers. An
    engine that was started again is another process."""

    replica: int
    process: str
    workers: int = 1


class Follower:
    """The part that a rank has in a push when it sends nothing. In most transports it is this: none."""

    def send_to(self, engines: tuple[Member, ...]) -> None:
        """Learn which engines the next push goes to. All ranks call it before each push."""

    def follow(self, bucket: Tensors) -> None:
        """Take part in a bucket that rank 0 sends, or would send had its push not failed."""

    def rest(self) -> None:
        """Free what was kept for a push that has ended. All ranks call it, once a push."""

    def close(self) -> None:
        """Free everything. Idempotent."""


class Sender(Follower):
    """Rank 0's end of a transport. One bucket travels at a time: every engine must have it before the next, unless the
    sender keeps them all, or lets some wait.

    For every bucket of a push rank 0 calls `send`, or `follow` once the push has failed.
    """

    stages: ClassVar[bool] = False
    """Whether engines have a `Stage`: they collect a version while they sample, and stand still only to load it."""

    keeps: ClassVar[bool] = False
    """Whether all buckets of a push stay where they are until its end, so that engines may be told of them at once."""

    ahead: ClassVar[int] = 1
    """How many buckets may be sent that some engine does not have yet."""

    def prepare(self, bucket: Tensors, verify: bool) -> tuple[str, ...]:
        """Do what can be done for the next `send`, of the same bucket, while engines still take the one before. Return
        the bucket's digests if it is to be verified."""
        return digests_of(bucket) if verify else ()

    def send(self, bucket: Tensors, digests: tuple[str, ...] = ()) -> Bucket:
        """Return the description that makes an engine load the bucket, and compare it with the digests if there are
        some."""
        raise NotImplementedError

    def abandon(self) -> Exception | None:
        """Give up a failed push. After that the last bucket may not be received any more.

        Return the exception of this side, if there was one.
        """
        return None


class Stage:
    """The end of a transport in an engine's own process, which collects a version while the engine samples. One thread
    calls `begin`, `join` and `receive`."""

    def begin(self) -> None:
        """Give up what was collected. The engine has loaded it, or never will."""

    def join(self, membership: dict[str, Any]) -> None:
        """Join the sender. It is called again when the sender has made another group."""

    def receive(self, bucket: Any) -> Bucket:
        """Bring a bucket into memory of this machine. Return the description with which the workers' receivers find it
        there, until `begin` is called again.

        Raises:
            ValueError: a tensor is not as it was sent.
        """
        raise NotImplementedError

    def interrupt(self) -> None:
        """End a `receive` that waits, because the push that it belongs to is over; `join` comes before the next. Any
        thread may call it."""

    def close(self) -> None:
        """Free everything, and end a `receive` that waits. Idempotent; any thread may call it."""


class Receiver(Protocol):
    """The end of a transport in one worker of an engine."""

    def join(self, membership: dict[str, Any]) -> None:
        """Join the sender. It is called again when the sender has made another group."""
        ...

    def receive(self, bucket: Any, load: Callable[[list[tuple[str, Tensor]]], None]) -> None:
        """Hand every tensor of a bucket to `load`, in any number of parts and on any device."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SenderPlace:
    """The surroundings of a sender. `address` is the address at which the engines reach this process."""

    run_id: str
    device: Device
    address: str
    sync: WeightSyncConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiverPlace:
    """The surroundings of a receiver. `parallel_config` is vLLM's, of this worker."""

    device: torch.device
    parallel_config: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlace:
    """The surroundings of a stage. `address` is that of its machine in the run's cluster."""

    address: str


class Transport:
    """The base of every way for weights to travel. It makes both ends, and is made itself in each process that has one
    of them."""

    def __init__(self, settings: TransportSettings) -> None:
        """Most transports have nothing to set."""

    def sender(self, place: SenderPlace) -> Sender:
        """Make the end of rank 0."""
        raise NotImplementedError

    def follower(self, place: SenderPlace) -> Follower:
        """Make the part of another trainer rank."""
        return Follower()

    def stage(self, place: StagePlace) -> Stage | None:
        """Make the end of an engine's own process; None where engines stand still, and load each bucket as it comes."""
        return None

    def receiver(self, place: ReceiverPlace) -> Receiver:
        """Make the end of one worker of an engine."""
        raise NotImplementedError


def describe(name: str, tensor: Tensor) -> WeightSpec:
    """Return a tensor's name, dtype and shape. Raises ValueError for a dtype that weights do not travel in."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise ValueError(f"{name} is {dtype}: weights travel as one of {', '.join(DTYPES)}")
    return WeightSpec(name=name, dtype=dtype, shape=tuple(tensor.shape))


def digest(tensor: Tensor) -> str:
    """Return 128 bits of XXH3 over the tensor's elements in row-major order, as hex. They are copied to the CPU first.

    It finds damage and exchanged tensors as sha256 does, at memory's speed; it does not resist an attacker.
    """
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return xxhash.xxh3_128_hexdigest(flat.numpy().data)


def digests_of(bucket: Tensors) -> tuple[str, ...]:
    """Return the digests of a bucket for its description."""
    return tuple(digest(tensor) for _, tensor in bucket)


def check_digests(bucket: Bucket, received: Tensors) -> None:
    """Compare received tensors, any part of the bucket, with the sender's digests. Do nothing if there are none.

    Raises:
        ValueError: a tensor differs, so it was damaged or exchanged with another one on the way.
    """
    if not bucket.digests:
        return
    sent = dict(zip(bucket.names, bucket.digests, strict=True))
    damaged = [name for name, tensor in received if digest(tensor) != sent[name]]
    if damaged:
        raise ValueError(f"weight bucket {bucket.sequence}: not the bytes that were sent: {', '.join(damaged)}")
