"""Buckets that arrive while another update begins, or while the one before is on its way."""

from __future__ import annotations

import asyncio
import threading

import pytest

from rollout.engine import updates as module
from rollout.engine.arrivals import Arrivals
from rollout.engine.updates import Collected
from rollout.transfer.bucket import Bucket, Stage
from rollout.transfer.update import WeightUpdateError
from rollout.types import WeightSpec


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


def weight(name: str) -> WeightSpec:
    return WeightSpec(name=name, dtype="float32", shape=(1,))


def buckets() -> list[Bucket]:
    return [Bucket(sequence=i, tensors=(weight(name),)) for i, name in enumerate("abc")]


def collected(stage: Stage) -> tuple[Collected, Arrivals]:
    """The updates of an engine that is asked for nothing before a version is whole."""
    arrivals = Arrivals(stage, 0)

    async def call(command: object) -> None:
        raise AssertionError("the engine samples")

    return Collected(call, arrivals, 0, recompute=False), arrivals


def test_buckets_are_taken_one_after_another_in_the_order_in_which_they_were_sent() -> None:
    async def run() -> list[int]:
        stage = Slow()
        updates, arrivals = collected(stage)
        await updates.begin(1, [weight(name) for name in "abc"])
        first, second, third = buckets()
        loading = [asyncio.create_task(updates.load(bucket)) for bucket in (first, third, second)]
        await asyncio.sleep(0.05)
        stage.received.set()
        await asyncio.gather(*loading)
        updates.close()
        return [bucket.sequence for bucket in arrivals.collected]

    assert asyncio.run(run()) == [0, 1, 2]


def test_a_bucket_before_which_one_was_lost_ends_the_update(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ORDER_S", 0.1)

    async def run() -> None:
        stage = Slow()
        stage.received.set()
        updates, _ = collected(stage)
        await updates.begin(1, [weight(name) for name in "abc"])
        await updates.load(buckets()[0])
        with pytest.raises(WeightUpdateError, match="bucket 2 came after bucket 0"):
            await updates.load(buckets()[2])
        with pytest.raises(WeightUpdateError, match="no update is open"):
            await updates.load(buckets()[1])
        updates.close()

    asyncio.run(run())


def test_a_bucket_that_waits_for_one_before_is_no_part_of_the_update_that_begins_meanwhile() -> None:
    async def run() -> tuple[list[BaseException | None], list[Bucket]]:
        stage = Slow()
        updates, arrivals = collected(stage)
        await updates.begin(1, [weight(name) for name in "abc"])
        late = [asyncio.create_task(updates.load(bucket)) for bucket in buckets()[:2]]
        await asyncio.sleep(0.05)
        begun = asyncio.create_task(updates.begin(2, [weight(name) for name in "abc"]))
        await asyncio.sleep(0.05)
        stage.received.set()
        failed = await asyncio.gather(*late, return_exceptions=True)
        await begun
        updates.close()
        return failed, arrivals.collected

    failed, arrived = asyncio.run(run())
    with pytest.raises(WeightUpdateError, match="the update to version 1 has ended"):
        raise failed[1] or AssertionError("it was taken")
    assert arrived == []
