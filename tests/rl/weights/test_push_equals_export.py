"""The weights that an engine gets by a push are those of the Hugging Face export, which vLLM and transformers load."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from rollout.transfer.bucket import describe, digests_of
from rollout.transfer.shm import ShmSender
from rollout.types import Completion, SamplingParams
from tests.rl.weights.push_scenario import BUCKET_BYTES, train_one_step
from tests.rollout.engine import inference_support as support
from tests.rollout.engine.inference_support import PARITY, Judge

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

PROMPTS = [[5, 6, 7, 8 + i] for i in range(8)]
GREEDY = SamplingParams(max_tokens=24, temperature=0.0)
Buckets = list[list[tuple[str, torch.Tensor]]]


@pytest.fixture(scope="module")
def export_and_buckets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Buckets]:
    folder = tmp_path_factory.mktemp("push")
    support.make_glm(folder / "start")
    train_one_step(folder / "start", folder / "export", folder / "buckets.pt")
    return folder / "export", torch.load(folder / "buckets.pt", weights_only=True)


def test_the_stream_is_the_export_and_a_step_away_from_the_start(export_and_buckets: tuple[Path, Buckets]) -> None:
    export, buckets = export_and_buckets
    assert len(buckets) > 5 and sum(t.nbytes for bucket in buckets for _, t in bucket) > 5 * BUCKET_BYTES
    streamed = {name: tensor for bucket in buckets for name, tensor in bucket}
    start = support.checkpoint_weights(export.parent / "start")
    assert streamed.keys() == start.keys()
    # The correction bias is a buffer: no gradient reaches it.
    unmoved = {name for name in start if torch.equal(streamed[name], start[name])}
    assert all(name.endswith("e_score_correction_bias") for name in unmoved), unmoved
    exported = {}
    for file in export.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            exported |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    assert exported.keys() == streamed.keys()
    assert all(torch.equal(exported[name], streamed[name]) for name in exported)


def test_an_engine_that_was_pushed_to_equals_one_that_loaded_the_export(
    export_and_buckets: tuple[Path, Buckets],
) -> None:
    """Compare the checksums of all weights, fused and packed, the greedy tokens, and the logprobs of transformers over
    the export."""
    export, buckets = export_and_buckets
    manifest = [describe(name, tensor) for bucket in buckets for name, tensor in bucket]

    async def pushed() -> tuple[dict[str, str], list[Completion]]:
        engine, sender = await support.start(export.parent / "start"), ShmSender("test")
        await engine.pause()
        await engine.begin_update(1, manifest)
        for bucket in buckets:
            await engine.load_bucket(sender.send(bucket, digests_of(bucket)))
        await engine.finish_update(1)
        await engine.resume()
        found = await engine.checksums(), await support.sample(engine, PROMPTS, "pushed", GREEDY)
        await engine.shutdown()
        sender.close()
        return found

    async def loaded() -> tuple[dict[str, str], list[Completion]]:
        engine = await support.start(export, version=1)
        found = await engine.checksums(), await support.sample(engine, PROMPTS, "loaded", GREEDY)
        await engine.shutdown()
        return found

    (pushed_checksums, pushed_completions), (loaded_checksums, loaded_completions) = (
        asyncio.run(pushed()),
        asyncio.run(loaded()),
    )
    assert pushed_checksums == loaded_checksums
    assert [c.token_ids for c in pushed_completions] == [c.token_ids for c in loaded_completions]
    judge = Judge(export)
    for prompt, completion in zip(PROMPTS, pushed_completions, strict=True):
        assert judge.gaps(prompt, completion).max() < PARITY
