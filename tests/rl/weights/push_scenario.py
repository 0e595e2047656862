"""One step on two trainer ranks, each expert on one of them, and the weights that they then hand to an engine.

The ranks are fresh processes, because DeepSpeed reads its environment when it is imported. test_push_equals_export.py
uses this.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import torch

from tests.ports import free_port
from tests.rl.learner import learner_fixtures as fixtures

RANKS = 2
BUCKET_BYTES = 100_000
"""Below the size of a layer's experts (8 x 64 x 64 floats a matrix), so that they travel in several buckets."""


def train_one_step(model: Path, export: Path, stream: Path, deadline_s: float = 240.0) -> None:
    """Train `model` by one step, export it, and save its stream: a list of buckets, each a list of (name, tensor)."""
    port = free_port()
    ranks = torch.multiprocessing.spawn(_rank, (port, model, export, stream), nprocs=RANKS, join=False, daemon=True)
    deadline = time.monotonic() + deadline_s
    try:
        while not ranks.join(timeout=5):
            assert time.monotonic() < deadline, f"the ranks did not end in {deadline_s:.0f} s"
    finally:
        for process in ranks.processes:
            process.kill()
            process.join()


def _rank(rank: int, port: int, model: Path, export: Path, stream: Path) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE=str(RANKS), RANK=str(rank))
    os.environ.update(DS_ACCELERATOR="cpu", LOCAL_RANK="0", TOKENIZERS_PARALLELISM="false")
    torch.set_num_threads(1)
    from rl.batch.micro_batch import TrainRow
    from rl.batch.packing import pack
    from tests.samples import sample_of

    rows = []
    for i in range(6):
        sample = sample_of(
            token_ids=tuple(range(5 + i, 25 + i)),
            loss_mask=(0, *[1] * 19),
            logprobs=(0.0, *[-6.2] * 19),
            versions=(-1, *[0] * 19),
        )
        rows.append(TrainRow(sample=sample, advantages=np.full(19, 1.0 if i % 2 else -0.5), weight=1 / (6 * 19)))
    batches = pack(rows, RANKS, 64)
    learner = fixtures.learner(model, RANKS, expert_parallel=RANKS)
    learner.train_step(batches[rank], fixtures.objective, lr=fixtures.OPTIMIZER.lr)
    learner.export_hf(export, shard_bytes=300_000)
    buckets = [[(name, tensor.clone()) for name, tensor in bucket] for bucket in learner.weights.buckets(BUCKET_BYTES)]
    if rank == 0:
        torch.save(buckets, stream)
    learner.close()
