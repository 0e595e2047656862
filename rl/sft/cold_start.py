"""The supervised stage: demonstrations → a model that sometimes succeeds, cached by content hash.

Runs on the trainer ranks that reinforcement learning uses afterwards, with an optimizer of its own. Its result is a
Hugging Face directory; the next stage starts from that directory whether it was cached or made just now, so both ways
give the same run.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rl.batch.micro_batch import SftRow, denominator
from rl.batch.packing import pack
from rl.config import Recipe
from rl.driver.cluster import Cluster
from rl.driver.health import check_finite
from rl.learner.schedule import learning_rate
from rl.sft.config import SftConfig
from rl.sft.data import sft_rows
from rl.sft.fingerprint import sft_fingerprint

Report = Callable[[int, int, float], None]
"""Called after every step with (steps done, steps in all, loss per trained token)."""


def cold_start(recipe: Recipe, cluster: Cluster, report: Report) -> str:
    """The path of the model that reinforcement learning starts from."""
    if recipe.sft is None:
        return recipe.model.path
    target = Path(recipe.run.cache_dir).resolve() / f"sft-{sft_fingerprint(recipe)}"
    if target.is_dir():
        return str(target)
    rows = sft_rows(recipe)
    calls = cluster.call(cluster.trainers, "build", recipe.model.path, "sft")
    cluster.wait(calls, "loading the model")
    _train(recipe, recipe.sft, cluster, rows, report)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}")
    cluster.wait(cluster.call(cluster.trainers, "export", str(unfinished)), "exporting the cold-started model")
    try:
        unfinished.rename(target)
    except OSError:  # another run was first: its model is the same
        shutil.rmtree(unfinished)
    return str(target)


def _train(recipe: Recipe, sft: SftConfig, cluster: Cluster, rows: Sequence[SftRow], report: Report) -> None:
    order = _endless(rows, recipe.run.seed)
    for step in range(sft.steps):
        batches = pack(_fill(order, sft.tokens_per_step), recipe.trainer.ranks, recipe.trainer.token_budget)
        count = denominator(batches)
        lr = learning_rate(sft.optimizer, step, sft.steps)
        calls = cluster.call_each(
            cluster.trainers, "train", [(batches[rank], "sft", float(count), lr, 0) for rank in range(len(batches))]
        )
        stats = cluster.wait(calls, f"supervised step {step + 1}")[0]
        check_finite(f"supervised step {step + 1}", stats, "sft.optimizer")
        report(step + 1, sft.steps, stats["loss"])


def _endless(rows: Sequence[SftRow], seed: int) -> Iterator[SftRow]:
    """Every row once per epoch, in a new order each time."""
    rng = random.Random(seed)
    while True:
        yield from rng.sample(list(rows), len(rows))


def _fill(order: Iterator[SftRow], tokens: int) -> list[SftRow]:
    """Rows until `tokens` are reached; the last one may exceed it."""
    rows: list[SftRow] = []
    while sum(len(row) for row in rows) < tokens:
        rows.append(next(order))
    return rows
