"""One real engine over a tiny GLM-4.5 MoE, through many weight versions; plain Hugging Face is the judge.

One engine serves all tests of this file, because starting one takes seconds: each test pushes what it needs, under a
version above all earlier ones.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
import torch

from rollout.engine.inference import EngineDeadError, EngineError, Inference, WeightUpdateError
from rollout.transfer.bucket import digests_of
from rollout.transfer.shm import ShmSender
from rollout.types import Completion, SamplingParams
from tests.rollout.engine import inference_support as support
from tests.rollout.engine.inference_support import PARITY, Judge, Weights

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

PROMPTS = [[5, 6, 7, 8 + i] for i in range(8)]
GREEDY = SamplingParams(max_tokens=24, temperature=0.0)


@dataclass
class Bench:
    """The engine, its event loop, and what a freshly loaded engine said about the same weights."""

    run: asyncio.Runner
    engine: Inference
    sender: ShmSender
    base: Weights
    folder: Path
    children: list[psutil.Process]
    """Child processes from before there was an engine: libraries that other tests use may have left helpers."""
    early: Exception
    fresh_checksums: dict[str, str]
    fresh_tokens: list[tuple[int, ...]]
    versions: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    labels: Iterator[int] = field(default_factory=itertools.count)

    def push(self, weights: Weights) -> int:
        version = next(self.versions)
        self.run.run(support.push(self.engine, self.sender, weights, version))
        return version

    def sample(self, prompts: list[list[int]], sampling: SamplingParams) -> list[Completion]:
        return self.run.run(support.sample(self.engine, prompts, f"call{next(self.labels)}", sampling))

    def judge(self, weights: Weights) -> Judge:
        path = self.folder / f"export{next(self.labels)}"
        support.export(weights, like=self.folder / "glm", path=path)
        return Judge(path)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder, children = tmp_path_factory.mktemp("engine"), psutil.Process().children(recursive=True)
    support.make_glm(folder / "glm")
    weights = support.checkpoint_weights(folder / "glm")
    with asyncio.Runner() as run:
        fresh = run.run(support.start(folder / "glm", version=7))
        tokens = run.run(support.sample(fresh, PROMPTS, "fresh", GREEDY))
        assert all(set(c.versions) == {7} for c in tokens)
        checksums = run.run(fresh.checksums())
        run.run(fresh.shutdown())

        engine = run.run(support.start(folder / "glm"))
        with pytest.raises(EngineError) as early:
            run.run(engine.generate("early", [1], GREEDY))
        sender = ShmSender("test")
        yield Bench(
            run=run,
            engine=engine,
            sender=sender,
            base=weights,
            folder=folder,
            children=children,
            early=early.value,
            fresh_checksums=checksums,
            fresh_tokens=[c.token_ids for c in tokens],
        )
        run.run(engine.shutdown())
        sender.close()


def test_nothing_is_sampled_before_the_first_push(bench: Bench) -> None:
    assert "nothing was pushed" in str(bench.early)


def test_a_push_equals_a_fresh_load_of_the_same_checkpoint(bench: Bench) -> None:
    bench.push(support.perturbed(bench.base, seed=9))
    assert bench.run.run(bench.engine.checksums()) != bench.fresh_checksums
    bench.push(bench.base)
    assert bench.run.run(bench.engine.checksums()) == bench.fresh_checksums
    assert [c.token_ids for c in bench.sample(PROMPTS, GREEDY)] == bench.fresh_tokens


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_hugging_faces_after_every_push(bench: Bench, temperature: float) -> None:
    for seed in range(3):
        weights = support.perturbed(bench.base, seed)
        version, judge = bench.push(weights), bench.judge(weights)
        sampling = SamplingParams(max_tokens=40, temperature=temperature)
        for prompt, completion in zip(PROMPTS, bench.sample(PROMPTS, sampling), strict=True):
            assert set(completion.versions) == {version} and completion.finish_reason == "length"
            assert judge.gaps(prompt, completion, temperature).max() < PARITY


def test_seeded_prompts_that_do_not_fit_one_step_together(bench: Bench) -> None:
    """Left to itself, vLLM would split one of these prompts over two steps, and crash on CPU, where it cannot rewind a
    generator."""
    bench.push(bench.base)
    judge = bench.judge(bench.base)
    prompts = [[2 + i, *(2 + (i * j) % 400 for j in range(400))] for i in range(24)]
    sampling = SamplingParams(max_tokens=4, seed=11)
    completions = bench.sample(prompts, sampling)
    for prompt, completion in zip(prompts, completions, strict=True):
        assert judge.gaps(prompt, completion).max() < PARITY
    assert [c.token_ids for c in bench.sample(prompts, sampling)] == [c.token_ids for c in completions]


def test_every_token_in_flight_has_the_version_that_sampled_it(bench: Bench) -> None:
    """Under `recompute` each token's logprob is that of its version's weights over the whole context before it."""
    judges = {}
    prompts = [[5 + i % 7, 6, 7, 8 + i] for i in range(32)]
    samplings = [SamplingParams(max_tokens=100 + 5 * i) for i in range(32)]

    async def push_while_sampling() -> list[Completion]:
        running = await support.start_requests(bench.engine, prompts, "flight", samplings)
        for seed in range(20, 24):
            await support.step(bench.engine, 20)
            weights, version = support.perturbed(bench.base, seed), next(bench.versions)
            await support.update(bench.engine, bench.sender, weights, version)
            judges[version] = weights
        await bench.engine.resume()
        return await running

    first = bench.push(bench.base)
    judges[first] = bench.base
    completions = bench.run.run(push_while_sampling())
    for completion in completions:
        assert list(completion.versions) == sorted(completion.versions)
        assert set(completion.versions) == set(judges)
    for version, weights in judges.items():
        judge = bench.judge(weights)
        for prompt, completion in zip(prompts, completions, strict=True):
            of_version = torch.tensor(completion.versions) == version
            gaps = judge.gaps(prompt, completion)
            assert (gaps[of_version] < PARITY).all()


def test_a_sampled_stop_token_is_included(bench: Bench) -> None:
    bench.push(bench.base)
    (free,) = bench.sample([PROMPTS[0]], GREEDY)
    stop = free.token_ids[5]
    cut = free.token_ids[: free.token_ids.index(stop) + 1]
    (stopped,) = bench.sample([PROMPTS[0]], SamplingParams(max_tokens=24, temperature=0.0, stop_token_ids=(stop,)))
    assert stopped.token_ids == cut and stopped.finish_reason == "stop"


def test_the_models_own_end_token_stops_nothing_by_itself(bench: Bench) -> None:
    """config.json says that eos is 1, but only the caller's stop tokens count. A head of zeros samples every token
    equally often, token 1 among them."""
    weights = dict(bench.base)
    weights["lm_head.weight"] = torch.zeros_like(weights["lm_head.weight"])
    bench.push(weights)
    completions = bench.sample(PROMPTS * 8, SamplingParams(max_tokens=200))
    assert any(1 in c.token_ids[:-1] for c in completions)
    assert all(len(c.token_ids) == 200 for c in completions)


def test_a_seed_repeats_a_completion(bench: Bench) -> None:
    bench.push(bench.base)
    seeded = SamplingParams(max_tokens=30, seed=11)
    (alone,) = bench.sample([PROMPTS[0]], seeded)
    together = bench.sample([PROMPTS[0], PROMPTS[0], PROMPTS[1]], seeded)
    assert alone.token_ids == together[0].token_ids == together[1].token_ids
    (other,) = bench.sample([PROMPTS[0]], SamplingParams(max_tokens=30, seed=12))
    assert other.token_ids != alone.token_ids


def test_prompts_and_ids_are_checked(bench: Bench) -> None:
    bench.push(bench.base)
    with pytest.raises(ValueError, match=r"rollout\.max_context is 512"):
        bench.sample([[5] * support.MAX_CONTEXT], GREEDY)

    async def twice() -> None:
        await asyncio.gather(*(bench.engine.generate("same", PROMPTS[0], GREEDY) for _ in range(2)))

    with pytest.raises(ValueError, match="'same' is already running"):
        bench.run.run(twice())


def test_unannounced_unknown_and_missing_weights_are_named(bench: Bench) -> None:
    engine, sender, good = bench.engine, bench.sender, bench.base
    version = bench.push(good)
    alien = {**good, "model.layers.1.mlp.gate_typo.weight": torch.zeros(3)}
    without = {name: tensor for name, tensor in good.items() if name != "model.layers.2.mlp.experts.5.up_proj.weight"}
    without_norm = {name: tensor for name, tensor in good.items() if name != "model.norm.weight"}
    router_bias = "model.layers.1.mlp.gate.e_score_correction_bias"
    without_bias = {name: tensor for name, tensor in good.items() if name != router_bias}

    async def fails(weights: Weights, announced: Weights, says: str, damaged: bool = True) -> None:
        await support.open_update(engine, announced, version)
        with pytest.raises(WeightUpdateError, match=says):
            for bucket in support.in_buckets(weights):
                await engine.load_bucket(sender.send(bucket))
            await engine.finish_update(version)
        if damaged:
            with pytest.raises(WeightUpdateError, match="stays paused"):
                await engine.resume()

    async def all_of_them() -> None:
        await fails(alien, good, "gate_typo.weight: not announced", damaged=False)
        await fails(alien, alien, "no weights named model.layers.1.mlp.gate_typo.weight")
        await fails(without, good, "never sent: model.layers.2.mlp.experts.5.up_proj.weight", damaged=False)
        await fails(without, without, r"no complete weights for model.layers.2.mlp.experts.*w13_weight")
        await fails(without_norm, without_norm, "no complete weights for model.norm")
        await fails(without_bias, without_bias, f"no complete weights for {router_bias}$")

    bench.run.run(all_of_them())
    bench.push(good)
    assert bench.run.run(engine.checksums()) == bench.fresh_checksums


def test_a_tensor_that_was_damaged_on_the_way_is_named(bench: Bench) -> None:
    engine, sender = bench.engine, bench.sender
    version = bench.push(bench.base)

    async def damage() -> None:
        await support.open_update(engine, bench.base, version)
        sent = sender.send(first := support.in_buckets(bench.base)[0], digests_of(first))
        (byte,) = os.pread(sent.fd, 1, sent.start + sent.offsets[3])
        os.pwrite(sent.fd, bytes([byte ^ 1]), sent.start + sent.offsets[3])
        with pytest.raises(WeightUpdateError, match=f"not the bytes that were sent: {sent.names[3]}$"):
            await engine.load_bucket(sent)
        await engine.resume()  # nothing of it was loaded

    bench.run.run(damage())
    assert bench.run.run(engine.checksums()) == bench.fresh_checksums
    bench.push(bench.base)
    assert bench.run.run(engine.checksums()) == bench.fresh_checksums


def test_a_tensor_that_does_not_fit_leaves_the_engine_paused_and_the_same_version_can_be_retried(bench: Bench) -> None:
    engine, sender = bench.engine, bench.sender
    bench.push(bench.base)
    weights = support.perturbed(bench.base, seed=40)
    name = "model.layers.1.self_attn.q_proj.weight"
    wrong = {**weights, name: weights[name][:, :-1].contiguous()}
    version = next(bench.versions)

    async def fail_then_retry() -> list[Completion]:
        waiting = asyncio.gather(
            *(engine.generate(f"retry-{i}", p, SamplingParams(max_tokens=40)) for i, p in enumerate(PROMPTS))
        )
        await support.open_update(engine, wrong, version)
        for bucket in support.in_buckets(wrong):
            await engine.load_bucket(sender.send(bucket))
        with pytest.raises(WeightUpdateError, match=f"update to version {version} failed in apply"):
            await engine.finish_update(version)
        with pytest.raises(WeightUpdateError, match="no update is open"):
            await engine.finish_update(version)
        with pytest.raises(WeightUpdateError, match="stays paused"):
            await engine.resume()
        before = (await engine.stats()).generated_tokens
        await asyncio.sleep(0.3)
        assert (await engine.stats()).generated_tokens == before and not waiting.done()
        await support.push(engine, sender, weights, version)
        return await waiting

    completions = bench.run.run(fail_then_retry())
    judge = bench.judge(weights)
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        assert set(completion.versions) <= {version - 1, version}
        assert (judge.gaps(prompt, completion)[torch.tensor(completion.versions) == version] < PARITY).all()


def test_repeated_calls_are_harmless_and_lost_buckets_are_noticed(bench: Bench) -> None:
    engine, sender, weights = bench.engine, bench.sender, support.perturbed(bench.base, seed=50)
    version = next(bench.versions)

    async def repeat_everything() -> None:
        await support.open_update(engine, weights, version)
        await support.open_update(engine, weights, version)
        for bucket in support.in_buckets(weights):
            sent = sender.send(bucket)
            await engine.load_bucket(sent)
            await engine.load_bucket(sent)
        assert await engine.finish_update(version) == await engine.finish_update(version) == version
        await engine.resume()
        await engine.resume()
        with pytest.raises(WeightUpdateError, match=f"has version {version} already"):
            await support.open_update(engine, weights, version - 1)
        await engine.resume()

    bench.run.run(repeat_everything())
    judge = bench.judge(weights)
    for prompt, completion in zip(PROMPTS, bench.sample(PROMPTS, SamplingParams(max_tokens=20)), strict=True):
        assert judge.gaps(prompt, completion).max() < PARITY

    async def lose_one() -> None:
        await support.open_update(engine, weights, version)
        first, second, third = support.in_buckets(weights)[:3]
        await engine.load_bucket(sender.send(first))
        sender.send(second)
        with pytest.raises(WeightUpdateError, match="came after bucket"):
            await engine.load_bucket(sender.send(third))
        await support.push(engine, sender, weights, version)

    bench.run.run(lose_one())


def test_cancelled_requests_free_their_places(bench: Bench) -> None:
    bench.push(bench.base)

    async def cancel() -> None:
        running = await support.start_requests(
            bench.engine, [[5, 6]] * 4, "cancel", [SamplingParams(max_tokens=400)] * 4
        )
        await support.step(bench.engine, 5)
        assert (await bench.engine.stats()).running == 4
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await bench.engine.resume()
        stats = await bench.engine.stats()
        assert (stats.running, stats.waiting) == (0, 0) and stats.kv_usage == 0
        await bench.engine.generate("cancel-0", [5, 6], GREEDY)

    bench.run.run(cancel())


# The last test of the file: it ends the shared engine.
def test_shutdown_leaves_nothing_and_later_calls_say_so(bench: Bench) -> None:
    shared = support.shared_memory_files()

    async def end() -> None:
        watching = asyncio.create_task(bench.engine.watch())
        running = asyncio.create_task(bench.engine.generate("last", [5, 6], SamplingParams(max_tokens=500)))
        await asyncio.sleep(0.1)
        await bench.engine.shutdown()
        await bench.engine.shutdown()
        await watching
        with pytest.raises(EngineDeadError):
            await running
        with pytest.raises(EngineDeadError, match="shut down"):
            await bench.engine.pause()

    bench.run.run(end())
    assert set(psutil.Process().children(recursive=True)) <= set(bench.children)
    assert not [path for path in shared if os.path.exists(path)]
