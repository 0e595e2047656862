"""The nccl transport between two GPUs: trainer here, engine in a process of its own."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rollout.transfer import NcclRendezvous
from tests.rollout import inference_support as support


def test_ranks_cover_every_worker_once() -> None:
    group = NcclRendezvous(address="a", port=1, replicas=3, tensor_parallel=2, buffer_bytes=1)
    ranks = [1 + replica * group.tensor_parallel + worker for replica in range(3) for worker in range(2)]
    assert [0, *ranks] == list(range(group.world_size))


ENGINE = """
import asyncio, pickle, sys
from rollout.config import InferenceConfig, WeightSyncConfig
from rollout.inference import Inference

async def serve():
    engine = await Inference.start(sys.argv[1], "float32", InferenceConfig(), WeightSyncConfig(), 512, "cuda", 0)
    while (call := pickle.load(sys.stdin.buffer)) is not None:
        result = await getattr(engine, call[0])(*call[1:])
        sys.stdout.buffer.write(pickle.dumps(result))
        sys.stdout.buffer.flush()
    await engine.shutdown()

asyncio.run(serve())
"""


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_push_over_nccl_equals_a_fresh_load(tmp_path: Path) -> None:
    import pickle

    from rollout.config import WeightSyncConfig
    from rollout.transfer import describe, make_sender

    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs: one to send, one to receive")
    support.make_llama(tmp_path / "llama")
    weights = {name: tensor.cuda(0) for name, tensor in support.checkpoint_weights(tmp_path / "llama").items()}
    with subprocess.Popen(
        [sys.executable, "-c", ENGINE, str(tmp_path / "llama")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "1"},
        cwd=Path(__file__).parents[2],
    ) as child:
        assert child.stdin is not None and child.stdout is not None

        def start(*call: object) -> None:
            child.stdin.write(pickle.dumps(call))
            child.stdin.flush()

        def call(*call: object) -> object:
            start(*call)
            return pickle.load(child.stdout)

        sender = make_sender(WeightSyncConfig(), "test", "cuda")
        call("pause")
        call("begin_update", 1, [describe(name, tensor) for name, tensor in weights.items()])
        for bucket in support.in_buckets(weights):
            call("load_bucket", sender.send(bucket))
        call("finish_update", 1)
        pushed = call("checksums")
        child.stdin.write(pickle.dumps(None))
        child.stdin.flush()
        sender.close()

    async def fresh() -> dict[str, str]:
        engine = await support.start(tmp_path / "llama", version=0, device="cuda")
        checksums = await engine.checksums()
        await engine.shutdown()
        return checksums

    assert pushed == asyncio.run(fresh())
