"""Tensor parallelism: vLLM's worker processes load the same buckets, and their death is reported at once."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from rl.weights.publish import publish
from rl.weights.read_back import ReadBack
from rollout.engine.config import InferenceConfig
from rollout.engine.inference import EngineDeadError, Inference
from rollout.transfer.bucket import describe
from rollout.transfer.config import WeightSyncConfig
from rollout.transfer.shm import ShmSender
from rollout.types import SamplingParams, WeightSpec
from tests.rollout.engine import inference_support as support
from tests.rollout.engine.inference_support import PARITY, Judge

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PROMPTS = [[5, 6, 7, 8 + i] for i in range(4)]


@pytest.fixture(scope="module")
def glm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("workers") / "glm"
    support.make_glm(path)
    return path


@pytest.fixture(scope="module")
def engine(glm: Path) -> Iterator[tuple[asyncio.Runner, Inference]]:
    with asyncio.Runner() as run:
        started = run.run(support.start(glm, config=InferenceConfig(tensor_parallel=2, cpu_threads=1)))
        yield run, started
        run.run(started.shutdown())


def test_two_workers_match_hugging_face_after_pushes(
    glm: Path, engine: tuple[asyncio.Runner, Inference], tmp_path: Path
) -> None:
    run, inference = engine
    base, sender = support.checkpoint_weights(glm), ShmSender("test")
    for version in (1, 2):
        weights = support.perturbed(base, seed=version)
        support.export(weights, like=glm, path=tmp_path / f"v{version}")
        judge = Judge(tmp_path / f"v{version}")
        run.run(support.push(inference, sender, weights, version))
        for prompt, completion in zip(
            PROMPTS,
            run.run(support.sample(inference, PROMPTS, f"v{version}", SamplingParams(max_tokens=20))),
            strict=True,
        ):
            assert judge.gaps(prompt, completion).max() < PARITY
    sender.close()


def test_checksums_tell_the_workers_apart(engine: tuple[asyncio.Runner, Inference]) -> None:
    run, inference = engine
    checksums = run.run(inference.checksums())
    halves = ["dp0:pp0:pcp0:tp0:lm_head.weight", "dp0:pp0:pcp0:tp1:lm_head.weight"]
    assert checksums[halves[0]] != checksums[halves[1]]
    assert len(checksums) == 2 * len([name for name in checksums if ":tp0:" in name])


class Local:
    """Engines of this process, as a push sees them."""

    def __init__(self, run: asyncio.Runner, *engines: Inference) -> None:
        self._run, self._engines = run, engines
        self.numbers: Sequence[int] = range(len(engines))

    def only(self, number: int) -> Local:
        one = Local(self._run, self._engines[number])
        one.numbers = [number]
        return one

    def done(self, started: list[Any]) -> bool:
        """What was started runs only while it is waited for."""
        return False

    def start(self, method: str, *args: Any) -> list[Any]:
        return [getattr(engine, method)(*args) for engine in self._engines]

    def wait(self, started: list[Any], timeout_s: float) -> list[Any]:
        async def all_of_them() -> list[Any]:
            return await asyncio.wait_for(asyncio.gather(*started), timeout_s)

        return self._run.run(all_of_them())


class Weights(dict[str, torch.Tensor]):
    """A source of plain tensors, in one bucket."""

    def manifest(self) -> list[WeightSpec]:
        return [describe(name, tensor) for name, tensor in self.items()]

    def buckets(self, max_bytes: int) -> Iterator[list[tuple[str, torch.Tensor]]]:
        yield list(self.items())


def test_engines_of_different_widths_get_the_same_push(
    glm: Path, engine: tuple[asyncio.Runner, Inference], tmp_path: Path
) -> None:
    run, wide = engine
    weights = Weights(support.perturbed(support.checkpoint_weights(glm), seed=3))
    support.export(weights, like=glm, path=tmp_path / "pushed")
    judge, sender = Judge(tmp_path / "pushed"), ShmSender("test")
    narrow = run.run(support.start(glm))
    engines = Local(run, wide, narrow)
    report = publish(weights, 3, WeightSyncConfig(), engines, sender, verify=True)
    assert report is not None and report.verified == 2
    found = ReadBack(3, engines, report.readable, deadline_s=100.0).finish([0, 1])
    assert (found.read, found.failed) == (0, {}), "two workers divide the weights of one, so checksums are compared"
    for label, own in (("wide", wide), ("narrow", narrow)):
        sampled = run.run(support.sample(own, PROMPTS, label, SamplingParams(max_tokens=20)))
        assert max(judge.gaps(*one).max() for one in zip(PROMPTS, sampled, strict=True)) < PARITY
    run.run(narrow.shutdown())
    sender.close()


# Last: it kills the engine.
def test_a_killed_worker_ends_everything_with_a_clear_error(engine: tuple[asyncio.Runner, Inference]) -> None:
    run, inference = engine
    workers = [
        p for p in psutil.Process().children(recursive=True) if "VLLM" in p.name() or "spawn_main" in str(p.cmdline())
    ]
    assert len(workers) >= 2

    async def kill() -> None:
        watching = asyncio.create_task(inference.watch())
        running = asyncio.create_task(inference.generate("killed", [5, 6], SamplingParams(max_tokens=500)))
        await asyncio.sleep(0.2)
        os.kill(workers[-1].pid, signal.SIGKILL)
        with pytest.raises(EngineDeadError, match="the vLLM engine is gone"):
            await watching
        with pytest.raises(EngineDeadError):
            await running
        with pytest.raises(EngineDeadError):
            await inference.pause()
        await inference.shutdown()

    run.run(kill())
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive
