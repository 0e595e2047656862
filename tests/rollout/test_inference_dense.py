"""A dense Llama under `cache_policy: keep`: running requests keep their KV cache, new ones never get an old one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rollout.config import WeightSyncConfig
from rollout.inference import Inference
from rollout.transfer import ShmSender
from rollout.types import Completion, SamplingParams
from tests.rollout import inference_support as support
from tests.rollout.inference_support import PARITY, Judge

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

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
    """Old tokens match the old weights; new ones are sampled over the old cache, so no plain model repeats them."""
    run, inference = engine
    base, sender = support.checkpoint_weights(llama), ShmSender("test")
    prompts = [[5, 6, 7 + i] for i in range(16)]

    async def push_while_sampling() -> list[Completion]:
        await support.push(inference, sender, base, 10)
        running = asyncio.gather(
            *(inference.generate(f"keep-{i}", p, SamplingParams(max_tokens=300)) for i, p in enumerate(prompts))
        )
        while (await inference.stats()).running < len(prompts):
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        await support.push(inference, sender, support.perturbed(base, seed=3), 11)
        return await running

    completions = run.run(push_while_sampling())
    sender.close()
    support.export(support.perturbed(base, seed=3), like=llama, path=tmp_path / "new")
    old, new = Judge(llama), Judge(tmp_path / "new")
    for prompt, completion in zip(prompts, completions, strict=True):
        assert set(completion.versions) == {10, 11}
        is_old = torch.tensor(completion.versions) == 10
        assert (old.gaps(prompt, completion)[is_old] < PARITY).all()
        assert new.gaps(prompt, completion)[~is_old].max() > PARITY, "the cache was recomputed"
