"""An engine that gives its device away and takes it back, with requests in flight."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from rollout.engine.config import InferenceConfig
from rollout.engine.inference import Inference
from rollout.engine.sleep import AsleepError
from rollout.engine.thread import engine_core
from rollout.transfer.shm import ShmSender
from rollout.transfer.update import WeightUpdateError
from rollout.types import SamplingParams
from tests.rollout.engine import inference_support as support
from tests.rollout.engine.inference_support import PARITY, Judge, Weights

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PROMPTS = [list(range(3, 40)), list(range(50, 75))]
GREEDY = [SamplingParams(max_tokens=24, temperature=0.0)] * 2


class Bench(NamedTuple):
    run: asyncio.Runner
    engine: Inference
    sender: ShmSender
    weights: Weights
    path: Path


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    path = tmp_path_factory.mktemp("sleep") / "llama"
    support.make_llama(path)
    sender = ShmSender("sleep")
    with asyncio.Runner() as run:
        engine = run.run(support.start(path, version=0))
        yield Bench(run, engine, sender, support.checkpoint_weights(path), path)
        run.run(engine.shutdown())
    sender.close()


async def asleep(engine: Inference) -> set[str]:
    """What vLLM says is asleep."""
    return set(await engine._call(lambda llm: engine_core(llm).model_executor.sleeping_tags))


async def wake_all(engine: Inference) -> None:
    await engine.wake("weights")
    await engine.wake("kv_cache")


def test_requests_in_flight_outlive_a_sleep_in_which_the_weights_are_kept(bench: Bench) -> None:
    async def interrupted() -> list[list[int]]:
        engine = bench.engine
        running = await support.start_requests(engine, PROMPTS, "slept", GREEDY)
        await support.step(engine, 7)
        await engine.sleep(keep_weights=True)
        assert await asleep(engine) == {"weights", "kv_cache"}
        await engine.sleep(keep_weights=True)  # once more does nothing
        await engine.wake("weights")
        assert await asleep(engine) == {"kv_cache"}
        await engine.wake("kv_cache")
        await engine.wake("kv_cache")
        assert await asleep(engine) == set()
        await engine.resume()
        completions = await running
        judge = Judge(bench.path)
        for prompt, completion in zip(PROMPTS, completions, strict=True):
            assert judge.gaps(prompt, completion).max() < PARITY
            assert set(completion.versions) == {engine.version}
        return [completion.token_ids for completion in completions]

    plain = bench.run.run(support.sample(bench.engine, PROMPTS, "plain", GREEDY[0]))
    assert bench.run.run(interrupted()) == [completion.token_ids for completion in plain]


def test_calls_out_of_order_are_refused_and_change_nothing(bench: Bench) -> None:
    async def check() -> None:
        engine = bench.engine
        with pytest.raises(AsleepError, match="pause the engine first"):
            await engine.sleep(keep_weights=True)
        await engine.pause()
        await engine.sleep(keep_weights=True)
        with pytest.raises(AsleepError, match="wake its weights and kv_cache first"):
            await engine.resume()
        with pytest.raises(AsleepError, match=r"update to version 5: .* wake its weights first"):
            await engine.begin_update(5, [])
        with pytest.raises(AsleepError, match=r"wake\(kv_cache\) comes after wake\(weights\)"):
            await engine.wake("kv_cache")
        await engine.wake("weights")
        with pytest.raises(AsleepError, match="wake its kv_cache first"):
            await engine.resume()
        await engine.wake("kv_cache")
        await engine.resume()
        assert len(await support.sample(engine, PROMPTS, "on", GREEDY[0])) == 2

    bench.run.run(check())


def test_after_dropping_its_weights_an_engine_stays_paused_until_all_have_been_pushed(bench: Bench) -> None:
    async def check() -> None:
        engine = bench.engine
        running = await support.start_requests(engine, PROMPTS, "dropped", GREEDY)
        await support.step(engine, 5)
        await engine.sleep(keep_weights=False)
        await wake_all(engine)
        with pytest.raises(WeightUpdateError, match=r"weights were dropped for the trainer's turn\. Push the weights"):
            await engine.resume()
        await engine.sleep(keep_weights=False)
        await engine.wake("weights")
        await support.update(engine, bench.sender, support.perturbed(bench.weights, seed=1), 3)
        await engine.wake("kv_cache")
        await engine.resume()
        for completion in await running:
            assert list(completion.versions) == [0] * 5 + [3] * 19
        await support.push(engine, bench.sender, bench.weights, 4)

    bench.run.run(check())


@pytest.mark.gpu
def test_a_sleeping_engine_frees_its_gpu(tmp_path: Path) -> None:
    import torch

    async def check() -> None:
        plain = support.settings(tmp_path / "llama", device="cuda", config=InferenceConfig(), load_format="auto")
        engine = await Inference.start(replace(plain, placement="colocated"), version=0)
        said = await support.sample(engine, PROMPTS, "awake", GREEDY[0])
        awake = torch.cuda.mem_get_info()[0]
        await engine.pause()
        await engine.sleep(keep_weights=True)
        asleep = torch.cuda.mem_get_info()[0]
        assert asleep - awake > 0.5 * torch.cuda.mem_get_info()[1], "the KV cache took most of the GPU"
        await engine.wake("weights")
        assert torch.cuda.mem_get_info()[0] - awake > 0.4 * torch.cuda.mem_get_info()[1], "the cache sleeps on"
        await engine.wake("kv_cache")
        await engine.resume()
        again = await support.sample(engine, PROMPTS, "again", GREEDY[0])
        assert [list(c.token_ids) for c in again] == [list(c.token_ids) for c in said]
        await engine.shutdown()

    support.make_llama(tmp_path / "llama")
    asyncio.run(check())
