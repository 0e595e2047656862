"""Adapters in a real vLLM engine: each version serves its own requests, as PEFT computes it, and no request waits."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from rollout.contracts import EngineError, Superseded
from rollout.engine.inference import Inference
from rollout.lora.arguments import AdapterSettings, Scale, linear_layers
from rollout.transfer.bucket import describe, digest, digests_of
from rollout.transfer.content import content_hash
from rollout.transfer.shm import ShmSender
from rollout.transfer.update import Findings, WeightUpdateError
from rollout.types import Completion, SamplingParams
from tests.rollout.engine import inference_support as support
from tests.rollout.engine.inference_support import PARITY, Judge, Weights

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

SCALE = Scale(rank=4, alpha=8.0, rslora=False)
SLOTS = 3
PROMPTS = [[5 + i % 90 for i in range(length)] for length in (40, 7, 100)]
SAMPLING = SamplingParams(temperature=1.0, max_tokens=12)
EVERYTHING = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def save_adapter(base: Path, path: Path, seed: int, targets: tuple[str, ...] = EVERYTHING) -> Weights:
    """Write an adapter that changes something, and return its tensors."""
    torch.manual_seed(seed)
    config = LoraConfig(r=SCALE.rank, lora_alpha=SCALE.alpha, target_modules=list(targets))
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(path)
    return load_file(path / "adapter_model.safetensors")


class PeftJudge(Judge):
    """Logprobs of a model with an adapter, by PEFT."""

    def __init__(self, base: Path, adapter: Path) -> None:
        super().__init__(base)
        self._model = PeftModel.from_pretrained(self._model, adapter).eval()


@dataclass
class Bench:
    """An engine with the base's weights, and a sender."""

    run: asyncio.Runner
    engine: Inference
    sender: ShmSender
    base: Path

    def push(self, tensors: Weights, version: int) -> None:
        self.run.run(push(self.engine, self.sender, tensors, version))

    def sample(self, label: str) -> list[Completion]:
        return self.run.run(support.sample(self.engine, PROMPTS, label, SAMPLING))

    def gap(self, judge: Judge, completions: list[Completion]) -> float:
        return max(float(judge.gaps(p, c).max()) for p, c in zip(PROMPTS, completions, strict=True))


async def push(engine: Inference, sender: ShmSender, tensors: Weights, version: int) -> int:
    """Push an adapter. Return the number of requests that were given up for it."""
    given_up = await engine.begin_adapter(version, [describe(name, tensor) for name, tensor in tensors.items()])
    for bucket in support.in_buckets(tensors):
        await engine.load_adapter(sender.send(bucket, digests_of(bucket)))
    await engine.finish_adapter(version)
    await engine.use_adapter(version)
    return given_up


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose head shares the embedding's weight, which has no adapter."""
    path = tmp_path_factory.mktemp("lora") / "llama"
    support.make_llama(path, tied=True)
    return path


@pytest.fixture(scope="module")
def bench(base: Path) -> Iterator[Bench]:
    with asyncio.Runner() as run:
        settings = replace(support.settings(base), adapters=AdapterSettings(slots=SLOTS, scale=SCALE, targets=None))
        engine = run.run(Inference.start(settings))
        sender = ShmSender("test")
        yield Bench(run, engine, sender, base)
        run.run(engine.shutdown())
        sender.close()


def test_the_linear_layers_of_a_model_are_found_by_its_config(base: Path) -> None:
    assert linear_layers(str(base)) == sorted(EVERYTHING)


def test_versions_follow_each_other_and_each_is_pefts(bench: Bench, tmp_path: Path) -> None:
    weights = support.checkpoint_weights(bench.base)
    bench.run.run(support.push(bench.engine, bench.sender, weights, 0))
    assert bench.run.run(bench.engine.content()) == content_hash({n: digest(t) for n, t in weights.items()})
    assert bench.run.run(bench.engine.read_back()) == Findings(same=len(weights))
    checksums = bench.run.run(bench.engine.checksums())
    with pytest.raises(EngineError, match="nothing was pushed"):
        bench.sample("before")
    plain = Judge(bench.base)
    for version in range(SLOTS + 2):
        tensors = save_adapter(bench.base, tmp_path / str(version), seed=version)
        bench.push(tensors, version)
        completions = bench.sample(f"v{version}")
        assert {int(v) for c in completions for v in c.versions} == {version} == {bench.engine.version}
        assert bench.gap(PeftJudge(bench.base, tmp_path / str(version)), completions) < PARITY
        assert bench.gap(plain, completions) > 0.05
        assert bench.engine.adapters.loaded == [version], "nobody uses the older ones"
    assert bench.run.run(bench.engine.checksums()) == checksums, "the base stays as it is"
    assert len([name for name in checksums if name.endswith("base_layer.cpu_linear")]) == 4 * 3


@pytest.mark.parametrize("target", EVERYTHING)
def test_every_target_has_an_effect(bench: Bench, tmp_path: Path, target: str) -> None:
    version = (bench.engine.version or 0) + 1
    bench.push(save_adapter(bench.base, tmp_path / "one", seed=1, targets=(target,)), version)
    completions = bench.sample(f"only-{target}")
    assert bench.gap(PeftJudge(bench.base, tmp_path / "one"), completions) < PARITY
    assert bench.gap(Judge(bench.base), completions) > 1e-3


def test_running_requests_keep_their_adapter_and_the_oldest_are_given_up_for_room(bench: Bench, tmp_path: Path) -> None:
    engine, first = bench.engine, (bench.engine.version or 0) + 1
    for version in range(first, first + SLOTS + 1):
        save_adapter(bench.base, tmp_path / str(version), seed=version)

    def tensors(version: int) -> Weights:
        return load_file(tmp_path / str(version) / "adapter_model.safetensors")

    async def scenario() -> list[list[Completion | BaseException]]:
        running = []
        for version in range(first, first + SLOTS):
            await push(engine, bench.sender, tensors(version), version)
            running.append(await support.start_requests(engine, PROMPTS, f"of-{version}", [SAMPLING] * len(PROMPTS)))
            await engine.resume()
            await asyncio.sleep(0)
            await engine.pause()
        assert engine.adapters.loaded == list(range(first, first + SLOTS))
        # All slots are taken, and none of the requests can end: the engine is paused.
        given_up = await push(engine, bench.sender, tensors(first + SLOTS), first + SLOTS)
        running.append(await support.start_requests(engine, PROMPTS, "of-the-newest", [SAMPLING] * len(PROMPTS)))
        assert given_up == len(PROMPTS)
        await engine.resume()
        return [await asyncio.gather(*[requests], return_exceptions=True) for requests in running]

    ended = bench.run.run(scenario())
    assert isinstance(ended[0][0], Superseded) and f"version {first}" in str(ended[0][0])
    for version, (completions,) in zip(range(first + 1, first + SLOTS + 1), ended[1:], strict=True):
        assert isinstance(completions, list)
        assert {int(v) for c in completions for v in c.versions} == {version}
        assert bench.gap(PeftJudge(bench.base, tmp_path / str(version)), completions) < PARITY
    assert engine.adapters.loaded == [first + SLOTS]


def test_faults_are_refused_and_the_engine_goes_on_with_what_it_has(bench: Bench, tmp_path: Path) -> None:
    version = bench.engine.version
    assert version is not None
    tensors = save_adapter(bench.base, tmp_path / "next", seed=7)
    name = next(iter(tensors))

    def attempt(changed: Weights, error: type[Exception], text: str, number: int = version + 1) -> None:
        with pytest.raises(error, match=text):
            bench.push(changed, number)
        assert bench.engine.version == version
        bench.sample(text)

    async def lossy() -> None:
        await bench.engine.begin_adapter(version + 1, [describe(n, t) for n, t in tensors.items()])
        await bench.engine.finish_adapter(version + 1)

    with pytest.raises(WeightUpdateError, match="never sent"):
        bench.run.run(lossy())
    unknown: dict[str, Tensor] = {n.replace("layers.0", "layers.9"): t for n, t in tensors.items()}
    attempt(unknown, Exception, "no adapters for the layers")
    attempt({n: t for n, t in tensors.items() if n != name}, Exception, "not whole")
    attempt(tensors, WeightUpdateError, "already", number=version - 1)
    bench.push(tensors, version + 1)
    bench.push(tensors, version + 1)  # a retry after everybody had it
    assert bench.gap(PeftJudge(bench.base, tmp_path / "next"), bench.sample("after")) < PARITY
