"""How a version arrives at an engine that samples on, and at one that stands still for it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from rollout.engine.inference import WeightUpdateError
from rollout.transfer.bucket import describe, digests_of
from rollout.transfer.config import TransportSettings, WeightSyncConfig
from rollout.transfer.shm import ShmSender
from rollout.types import SamplingParams
from tests.rollout.engine import inference_support as support

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PROMPTS = [[5, 6, 7, 8 + i] for i in range(3)]
STREAMED = WeightSyncConfig(transport=TransportSettings(name=f"{support.__package__}.streamed:StreamedShm"))


def test_an_engine_samples_from_the_old_version_until_the_new_one_is_complete(tmp_path: Path) -> None:
    support.make_glm(tmp_path / "glm")
    base = support.checkpoint_weights(tmp_path / "glm")
    new = support.perturbed(base, seed=1)

    async def scenario() -> None:
        engine, sender = await support.start(tmp_path / "glm"), ShmSender("test")
        await support.push(engine, sender, base, 1)
        old = await support.sample(engine, PROMPTS, "old", SamplingParams(max_tokens=12, temperature=0.0))
        await engine.begin_update(2, [describe(name, tensor) for name, tensor in new.items()])
        for i, bucket in enumerate(support.in_buckets(new)):
            await engine.load_bucket(sender.send(bucket, digests_of(bucket)))
            now = await support.sample(engine, PROMPTS, f"now{i}", SamplingParams(max_tokens=12, temperature=0.0))
            assert [c.token_ids for c in now] == [c.token_ids for c in old], "whatever has arrived"
            assert {version for completion in now for version in completion.versions} == {1}
        assert engine.paused_s == 0.0
        with pytest.raises(WeightUpdateError, match="pause the engine first"):
            await engine.finish_update(2)
        await engine.pause()
        await engine.finish_update(2)
        await engine.resume()
        sender.rest()
        fresh = await support.sample(engine, PROMPTS, "new", SamplingParams(max_tokens=12, temperature=0.0))
        assert {version for completion in fresh for version in completion.versions} == {2}
        assert [c.token_ids for c in fresh] != [c.token_ids for c in old]
        await engine.shutdown()
        sender.close()

    asyncio.run(scenario())


def test_an_engine_that_loads_what_arrives_stands_still_until_a_version_is_complete(tmp_path: Path) -> None:
    support.make_glm(tmp_path / "glm")
    base = support.checkpoint_weights(tmp_path / "glm")
    name = "model.layers.1.self_attn.q_proj.weight"
    wrong = {**base, name: base[name][:, :-1].contiguous()}

    async def scenario() -> None:
        engine, sender = await support.start(tmp_path / "glm", sync=STREAMED), ShmSender("test")
        with pytest.raises(WeightUpdateError, match="pause the engine first"):
            await engine.begin_update(1, [])
        with pytest.raises(WeightUpdateError, match="update to version 1 failed in load"):
            await support.update(engine, sender, wrong, 1)
        with pytest.raises(WeightUpdateError, match="stays paused"):
            await engine.resume()
        await support.push(engine, sender, base, 1)
        pushed = await engine.checksums()
        await engine.shutdown()
        loaded = await support.start(tmp_path / "glm", version=1)
        assert await loaded.checksums() == pushed
        await loaded.shutdown()
        sender.close()

    asyncio.run(scenario())
