"""Weights in shared memory, for trainer and engines on one host without GPUs.

The sender fills one segment with the whole version while engines sample; they load it from there. So the bytes are
copied twice in all: from the trainer's tensors, which the next step changes, to the segment, and from there to the form
that the engine computes with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from rollout.transfer.bucket import (
    ReceiverPlace,
    Sender,
    SenderPlace,
    Stage,
    StagePlace,
    Tensors,
    Transport,
    check_digests,
    describe,
    digest,
)
from rollout.transfer.segment import Reader, Segment, StoredBucket, views


class Shm(Transport):
    """The transport `shm`."""

    def sender(self, place: SenderPlace) -> ShmSender:
        return ShmSender(place.run_id)

    def stage(self, place: StagePlace) -> ShmStage:
        return ShmStage()

    def receiver(self, place: ReceiverPlace) -> SegmentReceiver:
        return SegmentReceiver()


class SegmentReceiver:
    """Reads buckets of a segment; with tensor parallelism every worker reads the full tensors."""

    def __init__(self) -> None:
        self._reader = Reader()

    def join(self, membership: dict[str, Any]) -> None:
        """Shared memory needs no rendezvous."""

    def receive(self, bucket: StoredBucket, load: Callable[[list[tuple[str, Tensor]]], None]) -> None:
        load(self._reader.read(bucket))

    def close(self) -> None:
        self._reader.close()


class ShmStage(Stage):
    """What the sender has stored is where it has to be."""

    def __init__(self) -> None:
        self._reader = Reader()

    def receive(self, bucket: StoredBucket) -> StoredBucket:
        check_digests(bucket, self._reader.read(bucket))
        return replace(bucket, digests=())

    def close(self) -> None:
        self._reader.close()


class ShmSender(Sender):
    """Writes the buckets of a push one after another to a segment, over those of the push before."""

    stages = True
    keeps = True

    def __init__(self, run_id: str) -> None:
        self._segment = Segment(run_id)
        self._rested = False
        self._sequence = 0
        self._prepared: StoredBucket | None = None

    def prepare(self, bucket: Tensors, verify: bool) -> tuple[str, ...]:
        """Copy the tensors (any device) into shared memory, each right after its digest, when its bytes are near.

        Raises:
            RuntimeError: after close().
        """
        if self._rested:
            self._segment.clear()
            self._rested = False
        specs = [describe(name, tensor) for name, tensor in bucket]
        stored, whole = self._segment.room(self._sequence, specs)
        digests = []
        for (_, tensor), place in zip(bucket, views(whole, specs, stored.offsets), strict=True):
            if verify:
                digests.append(digest(tensor))
            place.copy_(tensor.detach())
        self._sequence += 1
        self._prepared = stored
        return tuple(digests)

    def send(self, bucket: Tensors, digests: tuple[str, ...] = ()) -> StoredBucket:
        """Describe where the tensors are. Raises RuntimeError after close()."""
        if self._prepared is None:
            self.prepare(bucket, verify=False)
        stored, self._prepared = self._prepared, None
        assert stored is not None
        return replace(stored, digests=digests)

    def rest(self) -> None:
        self._rested, self._prepared = True, None

    def close(self) -> None:
        """Free the memory. Idempotent."""
        self._segment.close()
