"""What one rank does in each multi-process test of the learner; see `tests.rl.learner_worker.run_ranks`.

Starting a rank costs seconds, so each scenario checks many configurations, building one learner after another in the
same process (which is itself what an SFT stage followed by reinforcement learning does).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from deepspeed.utils import groups, safe_get_full_optimizer_state
from torch import Tensor

from rl.batch import denominator, pack
from rl.learner import Learner
from rl.weights import _pieces
from tests.rl import learner_fixtures as fixtures

RANK, WORLD = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])

CASES = {
    1: [("glm", 1, 64), ("glm", 1, 17), ("qwen", 1, 64), ("llama", 1, 20)],
    2: [("glm", 1, 20), ("glm", 2, 64), ("glm", 2, 17), ("qwen", 1, 64), ("qwen", 2, 17), ("glm-skewed", 2, 20), ("llama", 1, 20)],
}
"""By world size: model, expert-parallel size, token budget of a micro-batch."""


def parity(directory: Path) -> dict[tuple[str, int, int], dict[str, Any]]:
    results = {}
    for kind, expert_parallel, budget in CASES[WORLD]:
        learner = fixtures.learner(directory.parent / kind, WORLD, expert_parallel)
        packed = pack(fixtures.rows(), WORLD, budget)
        count = denominator(packed)
        # One row per call: every rank runs the same rows, so the results do not depend on the packing.
        logprobs = [learner.logprobs(pack([row], 1, 64)[0][0], fixtures.TEMPERATURE)[:-1] for row in fixtures.rows()]
        stats = learner.train_step(packed[RANK], fixtures.objective, count, temperature=fixtures.TEMPERATURE)
        export = directory / f"export-{kind}-{expert_parallel}-{budget}"
        learner.export_hf(export, shard_bytes=100_000)
        results[kind, expert_parallel, budget] = {
            "logprobs": [torch.from_numpy(row) for row in logprobs],
            "stats": stats,
            "first_moment": first_moments(learner),
            "weights": full_weights(learner),
            "specs": learner.weights.manifest(),
            "fillers": sum(batch.trained_tokens == 0 for batch in packed[RANK]),
            "export": export,
        }
        learner.close()
    return results


def full_weights(learner: Learner, max_bytes: int = 1 << 30) -> dict[str, Tensor]:
    return {name: tensor.clone() for bucket in learner.weights.buckets(max_bytes) for name, tensor in bucket}


def first_moments(learner: Learner) -> dict[str, Tensor]:
    """Adam's first moment after one step, (1 - beta1) times the clipped gradient that the optimizer saw."""
    moments: dict[str, Tensor] = {}
    for name, parameter in learner._engine.module.named_parameters():
        full = safe_get_full_optimizer_state(parameter, "exp_avg")
        (piece,) = _pieces(name, parameter, max_bytes=None)
        if piece.experts is None:
            moments[piece.names[0]] = full.clone()
            continue
        group = groups._get_expert_parallel_group(parameter.group_name)
        shards = [torch.empty_like(full) for _ in range(torch.distributed.get_world_size(group))]
        torch.distributed.all_gather(shards, full.contiguous(), group=group)
        moments.update(zip(piece.names, torch.cat(shards).unbind(0), strict=True))
    return moments
