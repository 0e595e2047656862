"""The supervised stage: demonstrations → a model that sometimes succeeds, cached by content hash.

It runs on the trainer ranks that reinforcement learning uses afterwards, with an optimizer of its own. Its result is a
Hugging Face directory. The next stage starts from that directory whether it was cached or made just now, so both ways
give the same run.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from rl.batch.micro_batch import SftRow
from rl.batch.packing import pack
from rl.config import Recipe
from rl.driver.health import check_finite
from rl.driver.specs import supervised_stage
from rl.driver.waiting import Actor, Calls, Started
from rl.learner.schedule import learning_rate
from rl.sft.config import SftConfig
from rl.sft.data import sft_rows
from rl.sft.fingerprint import sft_fingerprint

Report = Callable[[int, int, float], None]
"""Called after every step with (steps done, total steps, loss per trained token)."""


def cold_start(
    recipe: Recipe, calls: Calls, trainers: Sequence[Actor], report: Report, warn: Callable[[str], None]
) -> str:
    """Train the model of a recipe with an `sft:` section on demonstrations, or find the result in the cache. Returns
    its directory."""
    assert recipe.sft is not None
    target = Path(recipe.run.cache_dir).resolve() / f"sft-{sft_fingerprint(recipe)}"
    if target.is_dir():
        return str(target)
    building = calls.start(trainers, "build", recipe.model.path, supervised_stage(recipe))
    shown = sft_rows(recipe)
    for left_out in shown.skipped:
        warn(str(left_out))
    calls.wait(building, "loading the model")
    for step, stats in enumerate(_steps(recipe, recipe.sft, calls, trainers, shown.rows), start=1):
        check_finite(f"supervised step {step}", stats, "sft.optimizer")
        report(step, recipe.sft.steps, stats["loss"])
    unfinished = target.with_name(f".{target.name}.{os.getpid()}")
    calls.ask_all(trainers, "export", str(unfinished), what="exporting the cold-started model")
    try:
        unfinished.rename(target)
    except OSError:  # another run has put the same model there
        shutil.rmtree(unfinished)
    return str(target)


def _steps(
    recipe: Recipe, sft: SftConfig, calls: Calls, trainers: Sequence[Actor], rows: Sequence[SftRow]
) -> Iterator[dict[str, float]]:
    """Run every step and yield its statistics. A step waits at the ranks when they end the one before it."""
    order = _endless(rows, recipe.run.seed)

    def start(step: int) -> Started:
        chosen = _weighed(_fill(order, sft.tokens_per_step))
        batches = pack(chosen, recipe.trainer.ranks, recipe.trainer.token_budget)
        lr = learning_rate(sft.optimizer, step, sft.steps)
        return calls.start_each(trainers, "train", [(of_rank, lr, 0) for of_rank in batches])

    running = start(0)
    for step in range(1, sft.steps + 1):
        following = start(step) if step < sft.steps else {}
        yield calls.wait(running, f"supervised step {step}")[0]
        running = following


def _endless(rows: Sequence[SftRow], seed: int) -> Iterator[SftRow]:
    """The rows, epoch after epoch, each time in a new order."""
    rng = random.Random(seed)
    while True:
        yield from rng.sample(list(rows), len(rows))


def _fill(order: Iterator[SftRow], tokens: int) -> list[SftRow]:
    """Take rows until they have `tokens` tokens. The last one may go beyond that."""
    rows: list[SftRow] = []
    while tokens > 0:
        rows.append(next(order))
        tokens -= len(rows[-1])
    return rows


def _weighed(rows: Sequence[SftRow]) -> list[SftRow]:
    """Weigh the rows so that the step's loss is the mean over all tokens to imitate."""
    tokens = sum(row.trained_tokens for row in rows)
    return [replace(row, weight=1 / tokens) for row in rows]
