"""A dense Llama under `cache_policy: keep`: running requests keep their KV cache, new ones never use an old one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rollout.engine.inference import Inference
from rollout.transfer.config import WeightSyncConfig
from rollout.transfer.shm import ShmSender
from rollout.types import Completion, SamplingParams
from tests.rollout.engine import inference_support as support
from tests.rollout.engine.inference_support import PARITY, Judge

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

# Longer than two cache blocks, or the prefix cache would have nothing to share.
PROMPT = [5 + i % 90 for i in range(300)]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dense") / "llama"
    support.make_llama(path)
    return path


@pytest.fixture(scope="module")
def engine(llama: Path) -> Iterator[tuple[asyncio.Runner, Inference]]:
    with asyncio.Runner() as run:
        started = run.run(support.start(llama, sync=WeightSyncConfig(cache_policy="keep")))
        yield run, started
        run.run(started.shutdown())


def test_new_requests_never_use_a_prompt_cached_under_old_weights(
    llama: Path, engine: tuple[asyncio.Runner, Inference], tmp_path: Path
) -> None:
    run, inference = engine
    base, sender = support.checkpoint_weights(llama), ShmSender("test")
    for version in (1, 2):
        weights = support.perturbed(base, seed=version)
        support.export(weights, like=llama, path=tmp_path / f"v{version}")
        judge = Judge(tmp_path / f"v{version}")
        run.run(support.push(inference, sender, weights, version))
        for label in ("cold", "cached"):
            (completion,) = run.run(
                support.sample(inference, [PROMPT], f"{label}{version}", SamplingParams(max_tokens=20))
            )
            assert judge.gaps(PROMPT, completion).max() < PARITY
    sender.close()


def test_running_requests_go_on_with_their_cache_and_carry_both_versions(
    llama: Path, engine: tuple[asyncio.Runner, Inference], tmp_path: Path
) -> None:
    """Old tokens match the old weights. New ones are sampled over the old cache, so no plain model reproduces them."""
    run, inference = engine
    base, sender = support.checkpoint_weights(llama), ShmSender("test")
    prompts = [[5, 6, 7 + i] for i in range(16)]

    async def push_while_sampling() -> list[Completion]:
        await support.push(inference, sender, base, 10)
        running = await support.start_requests(inference, prompts, "keep", [SamplingParams(max_tokens=100)] * 16)
        await support.step(inference, 50)
        await support.push(inference, sender, support.perturbed(base, seed=3), 11)
        return await running

    completions = run.run(push_while_sampling())
    sender.close()
    support.export(support.perturbed(base, seed=3), like=llama, path=tmp_path / "new")
    old, new = Judge(llama), Judge(tmp_path / "new")
    for prompt, completion in zip(prompts, completions, strict=True):
        assert completion.versions.tolist() == [10] * 50 + [11] * 50
        is_old = torch.tensor(completion.versions) == 10
        assert (old.gaps(prompt, completion)[is_old] < PARITY).all()
        assert new.gaps(prompt, completion)[~is_old].max() > PARITY, "the cache was recomputed"


def test_a_head_that_shares_the_embedding_follows_every_push(tmp_path: Path) -> None:
    """The checkpoint has the shared weight once, under the embedding's name."""
    support.make_llama(tmp_path / "tied", tied=True)
    base, sender = support.checkpoint_weights(tmp_path / "tied"), ShmSender("test")
    assert "lm_head.weight" not in base
    with asyncio.Runner() as run:
        inference = run.run(support.start(tmp_path / "tied"))
        for version in (1, 2):
            weights = support.perturbed(base, seed=version)
            support.export(weights, like=tmp_path / "tied", path=tmp_path / f"v{version}")
            judge = Judge(tmp_path / f"v{version}")
            run.run(support.push(inference, sender, weights, version))
            sampling = SamplingParams(max_tokens=20)
            (completion,) = run.run(support.sample(inference, [PROMPT], f"tied{version}", sampling))
            assert judge.gaps(PROMPT, completion).max() < PARITY
        run.run(inference.shutdown())
    sender.close()
