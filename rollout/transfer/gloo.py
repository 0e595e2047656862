"""Weights over the network to engines without GPUs, by gloo.

Trainer rank 0 broadcasts every bucket to all engines, which receive it into a segment of their machine while they
sample. So the bytes are copied four times in all: from the trainer's tensors, which the next bucket changes, to what is
sent; into the kernel and out of it; and from the segment to the form that the engine computes with.

Nothing listens anywhere but on the address that a machine has in the run's cluster: not the store in which the members
of a group find each other, nor gloo's own connections.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch._C._distributed_c10d import PrefixStore, ProcessGroupGloo, TCPStore

from rollout.ports import listen
from rollout.transfer.bucket import (
    Bucket,
    Member,
    ReceiverPlace,
    SenderPlace,
    Stage,
    StagePlace,
    Tensors,
    Transport,
    check_digests,
    describe,
)
from rollout.transfer.group import GroupSender, Meeting
from rollout.transfer.segment import Segment, StoredBucket, layout, views
from rollout.transfer.shm import SegmentReceiver
from rollout.types import WeightSpec

POLL_S = 0.0005


@dataclass(frozen=True, slots=True, kw_only=True)
class GlooRendezvous:
    """The store at which a group meets, of rank 0 and the engines with these numbers. Each operation may take
    `timeout_s`."""

    address: str
    port: int
    replicas: tuple[int, ...]
    timeout_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GlooBucket(Bucket):
    """A bucket that trainer rank 0 broadcasts now, in the layout of a segment."""

    rendezvous: GlooRendezvous

    def join(self, replica: int) -> dict[str, Any]:
        return {"rendezvous": self.rendezvous, "rank": 1 + self.rendezvous.replicas.index(replica)}


class Gloo(Transport):
    """The transport `gloo`."""

    def sender(self, place: SenderPlace) -> GlooSender:
        return GlooSender(place)

    def stage(self, place: StagePlace) -> GlooStage:
        return GlooStage(place.address)

    def receiver(self, place: ReceiverPlace) -> SegmentReceiver:
        return SegmentReceiver()


class GlooStage(Stage):
    """Receives buckets into a segment, which the engine's workers read."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._segment = Segment("engine")
        self._group: GlooGroup | None = None

    def begin(self) -> None:
        self._segment.clear()

    def join(self, membership: dict[str, Any]) -> None:
        self._leave()
        rendezvous: GlooRendezvous = membership["rendezvous"]
        timeout = timedelta(seconds=rendezvous.timeout_s)
        store = TCPStore(rendezvous.address, rendezvous.port, None, False, timeout)
        self._group = GlooGroup(store, membership["rank"], rendezvous, self._address)

    def receive(self, bucket: GlooBucket) -> StoredBucket:
        assert self._group is not None, "a bucket's group is joined before it is received"
        stored, whole = self._segment.room(bucket.sequence, bucket.tensors)
        self._group.broadcast([("", whole)])
        received = list(zip(bucket.names, views(whole, bucket.tensors, stored.offsets), strict=True))
        check_digests(bucket, received)
        return stored

    def interrupt(self) -> None:
        self._leave()

    def close(self) -> None:
        self._leave()
        self._segment.close()

    def _leave(self) -> None:
        if self._group is not None:
            self._group.leave()
            self._group = None


class GlooGroup:
    """One member of a group. Making it waits for all members."""

    def __init__(self, store: TCPStore, rank: int, rendezvous: GlooRendezvous, address: str) -> None:
        options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        options._devices = [ProcessGroupGloo.create_device(hostname=address)]
        options._timeout = timedelta(seconds=rendezvous.timeout_s)
        self._store = store
        self._group: Any = ProcessGroupGloo(PrefixStore("weights", store), rank, 1 + len(rendezvous.replicas), options)
        self._left = False

    def broadcast(self, bucket: Tensors) -> None:
        """Send the bytes from rank 0 to all others.

        Raises:
            RuntimeError: a member is gone, it took too long, or this one has left.
        """
        for _, tensor in bucket:
            if len(tensor):
                self._wait(self._group.broadcast([tensor]))

    def _wait(self, work: Any) -> None:
        while not work.is_completed():
            if self._left:
                raise RuntimeError("the group of the weight push was left")
            time.sleep(POLL_S)
        work.wait()

    def leave(self) -> None:
        """Leave, also in the middle of a broadcast. Gloo gives up a broadcast no earlier than its deadline, and the end
        of a group waits for that. So a thread of its own waits."""
        self._left = True
        if self._group is not None:
            ending = threading.Thread(target=_end, args=(self._group,), name="gloo-end", daemon=True)
            self._group = None
            ending.start()


class GlooSender(GroupSender):
    """Rank 0 of a group with every engine. It packs a bucket into a buffer while one travels and another one waits."""

    stages = True
    ahead = 2

    def __init__(self, place: SenderPlace) -> None:
        self._buffers = deque(torch.empty(0, dtype=torch.uint8) for _ in range(1 + self.ahead))
        super().__init__(place)

    def meet(self, engines: tuple[Member, ...]) -> GlooMeeting:
        listening = listen(self._place.address)
        sync = self._place.sync
        rendezvous = GlooRendezvous(
            address=self._place.address,
            port=listening.getsockname()[1],
            replicas=tuple(engine.replica for engine in engines),
            timeout_s=sync.deadline_s(int(sync.bucket_mb * 2**20)),
        )
        return GlooMeeting(rendezvous, listening)

    def own(self, bucket: Tensors) -> Tensors:
        specs = [describe(name, tensor) for name, tensor in bucket]
        offsets, size = layout(specs)
        buffer = self._buffers.popleft()
        if len(buffer) < size:
            buffer = torch.empty(size, dtype=torch.uint8)
        self._buffers.append(buffer)
        packed = buffer[:size]
        for (_, tensor), place in zip(bucket, views(packed, specs, offsets), strict=True):
            place.copy_(tensor.detach())
        return [("", packed)]


class GlooMeeting(Meeting):
    """A store that listens from the start, so that nobody takes its port, and answers once the group opens."""

    def __init__(self, rendezvous: GlooRendezvous, listening: socket.socket) -> None:
        self._rendezvous, self._listening = rendezvous, listening

    def open(self) -> GlooGroup:
        own = self._rendezvous
        store = TCPStore(
            own.address,
            own.port,
            None,
            True,
            timedelta(seconds=own.timeout_s),
            wait_for_workers=False,
            master_listen_fd=self._listening.detach(),
        )
        return GlooGroup(store, 0, own, own.address)

    def describe(self, sequence: int, specs: Sequence[WeightSpec], digests: tuple[str, ...]) -> GlooBucket:
        return GlooBucket(sequence=sequence, tensors=tuple(specs), digests=digests, rendezvous=self._rendezvous)

    def close(self) -> None:
        self._listening.close()


def _end(group: Any) -> None:
    """Have the last reference to a group, which ends with it."""
