"""Weight buckets from trainer rank 0 to GPU engines over NCCL, in the wire format of vLLM's own weight transfer.

Tensors travel as packed chunks (`packed_nccl_broadcast_producer` and `_consumer`). vLLM broadcasts the whole model at
once. Here it is one bucket at a time, so that the trainer never holds more than a gathered bucket, the copy that is
being sent and the buffers that it is packed into. Both sides of a broadcast must run at once, so `send` starts it on a
thread and returns the description that makes the engines receive. This has not run on GPUs yet;
tests/rollout/transfer/test_nccl.py runs it where it finds two.
"""

from __future__ import annotations

import itertools
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rollout.ports import listen
from rollout.transfer.bucket import DTYPES, Bucket, Member, ReceiverPlace, SenderPlace, Tensors, Transport
from rollout.transfer.config import NcclSettings
from rollout.transfer.group import Group, GroupSender, Meeting
from rollout.types import WeightSpec

MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class NcclRendezvous:
    """The meeting point of a group. The sender is rank 0; the workers of the replicas follow, replica by replica."""

    address: str
    port: int
    engines: tuple[Member, ...]
    buffer_bytes: int

    @property
    def world_size(self) -> int:
        return 1 + sum(engine.workers for engine in self.engines)

    def first_rank(self, replica: int) -> int:
        """Return the rank of a replica's first worker. vLLM adds a worker's own rank to it."""
        before = itertools.takewhile(lambda engine: engine.replica != replica, self.engines)
        return 1 + sum(engine.workers for engine in before)


@dataclass(frozen=True, slots=True, kw_only=True)
class NcclBucket(Bucket):
    """A bucket that trainer rank 0 broadcasts now. An engine joins the group of `rendezvous` on its first bucket."""

    rendezvous: NcclRendezvous

    def join(self, replica: int) -> dict[str, Any]:
        """Return the fields of vLLM's NCCLWeightTransferInitInfo for the workers of one replica."""
        return {
            "master_address": self.rendezvous.address,
            "master_port": self.rendezvous.port,
            "rank_offset": self.rendezvous.first_rank(replica),
            "world_size": self.rendezvous.world_size,
            "packed": True,
            "packed_buffer_size_bytes": self.rendezvous.buffer_bytes,
        }


class Nccl(Transport):
    """The transport `nccl`. `NCCL_CUMEM_ENABLE` must be the same in the trainer's and the engines' environment."""

    def __init__(self, settings: NcclSettings) -> None:
        self._buffer_bytes = int(settings.buffer_mb * MIB)

    def sender(self, place: SenderPlace) -> NcclSender:
        return NcclSender(place, self._buffer_bytes, partial(NcclGroup, device=torch.cuda.current_device()))

    def receiver(self, place: ReceiverPlace) -> NcclReceiver:
        return NcclReceiver(place)


class NcclReceiver:
    """The receiver of one worker of an engine, as a member of the sender's group."""

    def __init__(self, place: ReceiverPlace) -> None:
        self._place = place
        self._group: Any = None
        self._buffer_bytes = self._buffers = 0

    def join(self, membership: dict[str, Any]) -> None:
        """Leave the group so far, if there is one, and join the sender's."""
        from vllm.distributed.weight_transfer.nccl_common import NCCLWeightTransferInitInfo, worker_init_process_group

        self.close()
        info = NCCLWeightTransferInitInfo(**membership)
        self._buffer_bytes, self._buffers = info.packed_buffer_size_bytes, info.packed_num_buffers
        self._group = worker_init_process_group(info, self._place.parallel_config)

    def receive(self, bucket: NcclBucket, load: Callable[[list[tuple[str, Tensor]]], None]) -> None:
        from vllm.distributed.weight_transfer.packed_tensor import packed_nccl_broadcast_consumer

        packed_nccl_broadcast_consumer(
            iterator=iter([(spec.name, (list(spec.shape), DTYPES[spec.dtype])) for spec in bucket.tensors]),
            group=self._group,
            src=0,
            post_unpack_func=load,
            buffer_size_bytes=self._buffer_bytes,
            num_buffers=self._buffers,
            device=self._place.device,
        )

    def close(self) -> None:
        """Leave the group. Idempotent."""
        if self._group is not None:
            self._group.destroy()
            self._group = None


class NcclGroup:
    """A communicator with every worker of every engine. Opening it waits until they have joined."""

    def __init__(self, rendezvous: NcclRendezvous, listening: socket.socket, *, device: int) -> None:
        from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator
        from vllm.utils.nccl import unpinned_nccl_env

        torch.cuda.set_device(device)
        self._buffer_bytes = rendezvous.buffer_bytes
        members = meet_members(rendezvous, listening)
        with unpinned_nccl_env():
            self._communicator = PyNcclCommunicator(members, device=device)

    def broadcast(self, bucket: Tensors) -> None:
        from vllm.distributed.weight_transfer.packed_tensor import packed_nccl_broadcast_producer

        packed_nccl_broadcast_producer(
            iterator=iter(bucket),
            group=self._communicator,
            src=0,
            post_iter_func=_tensor,
            buffer_size_bytes=self._buffer_bytes,
        )

    def leave(self) -> None:
        # vLLM's destroy is ncclCommAbort: it needs no answer from the other ranks.
        self._communicator.destroy()


def meet_members(rendezvous: NcclRendezvous, listening: socket.socket) -> Any:
    """Open vLLM's store of the group at the port that is listened to, and wait for all members. It is what vLLM's own
    `trainer_init` makes, which looks for the port later and knows IPv4 only."""
    from vllm.distributed.utils import StatelessProcessGroup

    return StatelessProcessGroup.create(
        rendezvous.address, rendezvous.port, rank=0, world_size=rendezvous.world_size, listen_socket=listening
    )


OpenGroup = Callable[[NcclRendezvous, socket.socket], Group]
"""Opens a group at a rendezvous whose port the socket listens at."""


class NcclSender(GroupSender):
    """Rank 0 of a communicator with every worker of every engine."""

    def __init__(self, place: SenderPlace, buffer_bytes: int, open_group: OpenGroup) -> None:
        self._buffer_bytes, self._open_group = buffer_bytes, open_group
        super().__init__(place)

    def meet(self, engines: tuple[Member, ...]) -> NcclMeeting:
        listening = listen(self._place.address)
        rendezvous = NcclRendezvous(
            address=self._place.address,
            port=listening.getsockname()[1],
            engines=engines,
            buffer_bytes=self._buffer_bytes,
        )
        return NcclMeeting(rendezvous, listening, self._open_group)


@dataclass(frozen=True, slots=True)
class NcclMeeting(Meeting):
    """A port that is listened to from the start, so that nobody takes it."""

    rendezvous: NcclRendezvous
    listening: socket.socket
    open_group: OpenGroup

    def open(self) -> Group:
        return self.open_group(self.rendezvous, self.listening)

    def describe(self, sequence: int, specs: Sequence[WeightSpec], digests: tuple[str, ...]) -> NcclBucket:
        return NcclBucket(sequence=sequence, tensors=tuple(specs), digests=digests, rendezvous=self.rendezvous)

    def close(self) -> None:
        self.listening.close()


def _tensor(pair: tuple[str, Tensor]) -> Any:
    return pair[1]
