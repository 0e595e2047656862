"""Which adapters an engine holds: the newest serves new requests, old ones go with their last request or for room."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.contracts import Superseded
from rollout.lora.names import adapter_id, adapter_name, plain_name
from rollout.lora.slots import Slots
from rollout.lora.updates import Adapters
from rollout.transfer.bucket import Bucket
from rollout.transfer.update import WeightUpdateError
from rollout.types import WeightSpec

SPEC = WeightSpec(name="a", dtype="float32", shape=(1,))


def test_a_request_keeps_its_adapter_and_the_old_one_goes_with_its_last_request() -> None:
    slots = Slots(3)
    slots.add(0)
    slots.use(0)
    assert [slots.begin(name) for name in "ab"] == [0, 0]
    slots.add(1)
    assert slots.begin("c") == 0, "loaded is not yet in use"
    slots.use(1)
    assert slots.begin("d") == 1 and slots.idle() == []
    for name in "abc":
        assert slots.idle() == []
        slots.end(name, 0)
    assert slots.idle() == [0]


def test_the_oldest_go_for_room_and_the_requests_that_use_them_are_named() -> None:
    slots = Slots(3)
    for version, names in ((0, "ab"), (1, ""), (2, "c")):
        slots.add(version)
        slots.use(version)
        for name in names:
            slots.begin(name)
    assert slots.crowded_out(3) == {0: {"a", "b"}}
    assert slots.crowded_out(2) == {}, "it is loaded again in its own slot"


class Engine:
    """Writes down what an engine is asked for, and ends requests as one does."""

    def __init__(self, slots: int) -> None:
        self.calls: list[Any] = []
        self.held: set[int] = set()
        self.most = 0
        self.adapters = Adapters(slots, self.rpc, self.abort)
        self.running: dict[str, int] = {}

    async def rpc(self, method: str, *arguments: Any) -> None:
        self.calls.append((method, *arguments))
        if method == "sluice_put_adapter":
            self.held.add(*arguments)
        if method == "sluice_drop_adapter":
            self.held.remove(*arguments)
        self.most = max(self.most, len(self.held))

    async def abort(self, request_id: str, reason: Exception) -> None:
        assert isinstance(reason, Superseded)
        await self.adapters.give_back(request_id, self.running.pop(request_id))

    async def push(self, version: int) -> None:
        await self.adapters.begin(version, [SPEC])
        await self.adapters.load(Bucket(sequence=version, tensors=(SPEC,)))
        await self.adapters.load(Bucket(sequence=version, tensors=(SPEC,)))  # a repetition
        await self.adapters.finish(version)
        await self.adapters.use(version)

    def start(self, request_id: str) -> None:
        self.running[request_id] = self.adapters.take(request_id)

    async def end(self, request_id: str) -> None:
        await self.adapters.give_back(request_id, self.running.pop(request_id))


@given(st.lists(st.sampled_from(["push", "start", "end"]), max_size=40), st.integers(2, 4))
def test_an_engine_never_holds_more_than_its_slots_and_never_lacks_an_adapter_in_use(actions, slots: int) -> None:
    async def scenario() -> None:
        engine = Engine(slots)
        await engine.push(0)
        version = 0
        for number, action in enumerate(actions):
            if action == "push":
                version += 1
                await engine.push(version)
            elif action == "start":
                engine.start(str(number))
                assert engine.running[str(number)] == version
            elif engine.running:
                await engine.end(next(iter(engine.running)))
            assert set(engine.running.values()) | {version} == engine.held == set(engine.adapters.loaded)
            assert engine.most <= slots

    asyncio.run(scenario())


def test_an_update_out_of_order_is_refused() -> None:
    async def scenario() -> None:
        engine = Engine(2)
        with pytest.raises(WeightUpdateError, match="begin the update first"):
            await engine.adapters.load(Bucket(sequence=0, tensors=(SPEC,)))
        await engine.push(3)
        with pytest.raises(WeightUpdateError, match="version 2: the engine uses version 3"):
            await engine.adapters.begin(2, [SPEC])
        await engine.adapters.begin(4, [SPEC])
        with pytest.raises(WeightUpdateError, match="never sent: a"):
            await engine.adapters.finish(4)
        assert engine.adapters.newest == 3 and engine.held == {3}

    asyncio.run(scenario())


def test_names() -> None:
    assert (adapter_id(0), adapter_name(7)) == (1, "policy-7")
    assert plain_name("model.layers.0.qkv_proj.base_layer.weight") == "model.layers.0.qkv_proj.weight"


def test_requests_are_given_up_together_and_a_late_stage_does_not_mix_with_a_repeated_push() -> None:
    async def scenario() -> None:
        engine = Engine(2)
        gate, waiting = asyncio.Event(), []

        async def abort(request_id: str, reason: Exception) -> None:
            waiting.append(request_id)
            await gate.wait()
            await engine.adapters.give_back(request_id, engine.running.pop(request_id))

        engine.adapters._abort = abort
        await engine.push(0)
        for name in "abc":
            engine.start(name)
        await engine.push(1)
        engine.start("d")
        first = asyncio.create_task(engine.adapters.begin(2, [SPEC]))
        again = asyncio.create_task(engine.push(2))
        await asyncio.sleep(0.01)
        assert sorted(waiting) == ["a", "b", "c"] and not first.done()
        gate.set()
        assert await first == 3
        await again
        assert engine.held == {1, 2} and engine.adapters.newest == 2
        assert [call for call in engine.calls if call[0] == "sluice_drop_adapter"] == [("sluice_drop_adapter", 0)]

    asyncio.run(scenario())
