"""Buckets that arrive while another update begins."""

from __future__ import annotations

import asyncio
import threading

from rollout.engine.arrivals import Arrivals
from rollout.transfer.bucket import Bucket, Stage


class Slow(Stage):
    """It has received a bucket once it is told to."""

    def __init__(self) -> None:
        self.received = threading.Event()
        self.interrupted = False

    def receive(self, bucket: Bucket) -> Bucket:
        assert self.received.wait(30)
        return bucket

    def interrupt(self) -> None:
        self.interrupted = True


def test_a_bucket_that_arrives_after_another_update_has_begun_belongs_to_nothing() -> None:
    async def run() -> tuple[list[Bucket], list[Bucket]]:
        stage = Slow()
        arrivals = Arrivals(stage, 0)
        late = asyncio.create_task(arrivals.collect(Bucket(sequence=0, tensors=())))
        await asyncio.sleep(0.05)
        begun = asyncio.create_task(arrivals.begin())
        await asyncio.sleep(0.05)
        assert stage.interrupted
        stage.received.set()
        await asyncio.gather(late, begun)
        after = list(arrivals.collected)
        await arrivals.collect(Bucket(sequence=1, tensors=()))
        arrivals.close()
        return after, arrivals.collected

    after, collected = asyncio.run(run())
    assert after == [] and [bucket.sequence for bucket in collected] == [1]
