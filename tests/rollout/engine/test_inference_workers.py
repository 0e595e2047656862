"""Tensor parallelism: vLLM's worker processes load the same buckets, and their death is reported at once."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from rollout.engine.config import InferenceConfig
from rollout.engine.inference import EngineDeadError, Inference
from rollout.transfer.shm import ShmSender
from rollout.types import SamplingParams
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
