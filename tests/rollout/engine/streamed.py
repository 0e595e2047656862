"""A transport whose engines stand still and load every bucket as it arrives, as with nccl and ipc, but on a CPU."""

from __future__ import annotations

from rollout.transfer.bucket import SenderPlace, StagePlace
from rollout.transfer.shm import Shm, ShmSender


class StreamedSender(ShmSender):
    stages = keeps = False


class StreamedShm(Shm):
    def sender(self, place: SenderPlace) -> StreamedSender:
        return StreamedSender(place.run_id)

    def stage(self, place: StagePlace) -> None:
        return None
