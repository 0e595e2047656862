"""The work of `benchmarks.against_trl_smollm2`: sums for SmolLM2-135M, in one turn or beside a slow calculator."""

from __future__ import annotations

import asyncio
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rollout.contracts import AssistantTurn, Environment
from rollout.envs.config import ReasoningSettings
from rollout.envs.reasoning import ReasoningEpisode, ReasoningTasks
from rollout.types import Task

MODEL = Path("models/smollm2-135m")
SUMS = {
    "family": "chain_sum",
    "parameters": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
    "answer": "number",
}
GROUP, TURN_TOKENS, WARMUP, SKIPPED = 8, 32, 2, 1
RANK, ALPHA = 16, 32
MEDIAN_S, P99_S = 0.5, 5.0
SIGMA = math.log(P99_S / MEDIAN_S) / 2.326
"""Of the logarithm of the calculator's latency, which is normally distributed."""


@dataclass(frozen=True, slots=True)
class Work:
    """`steps` of so many `completions`. The calculator speaks after each of the first `calls` turns. With `staleness` 0
    Sluice is on-policy, as TRL is."""

    name: str
    completions: int
    steps: int
    lora: bool
    calls: int = 0
    staleness: int = 0

    @property
    def lr(self) -> float:
        return 5e-4 if self.lora else 2e-5


WORKS = {
    work.name: work
    for work in (
        Work("LoRA", 64, 14, lora=True),
        Work("LoRA, one version late", 64, 14, lora=True, staleness=1),
        Work("full", 64, 6, lora=False),
        Work("LoRA, 3 turns", 32, 6, lora=True, calls=2, staleness=1),
    )
}


def tasks() -> ReasoningTasks:
    return ReasoningTasks(ReasoningSettings(name="reasoning", **SUMS))


def latency_s(rng: random.Random) -> float:
    return MEDIAN_S * math.exp(SIGMA * rng.gauss())


class Calculated(ReasoningTasks):
    """Each of the first two turns is answered by a calculator, with the right number; the third one counts."""

    name = "calculated"
    Settings = ReasoningSettings

    def make(self, task: Task, sandbox: Any) -> Environment:
        return WithCalculator(self._family, self._entry(task.payload["number"]), self._settings)


class WithCalculator(ReasoningEpisode):
    _calls = 0

    async def reply(self, turn: AssistantTurn) -> str | None:
        if self._calls == 2:
            return None
        self._calls += 1
        await asyncio.sleep(latency_s(random.Random()))
        return told(str(self._entry["answer"]))


def told(answer: str) -> str:
    return f"The calculator says {answer}."


def write_recipe(work: Work, folder: Path) -> Path:
    """Write Sluice's recipe, with a run directory in `folder`."""
    name = f"{__name__}:Calculated" if work.calls else "reasoning"
    recipe: dict[str, Any] = {
        "run": {"name": "against-trl", "steps": work.steps, "dir": str(folder / "run"), "device": "cpu"},
        "model": {"path": str(MODEL), "dtype": "float32", "renderer": "chatml"},
        "tasks": {"sources": [{"environment": {"name": name, **SUMS}}], "train_size": 100000, "eval_size": 1},
        "rollout": {
            "groups_per_worker": 2 * work.completions // GROUP,
            "group_size": GROUP,
            "max_turns": 1 + work.calls,
            "max_context": 320,
            "sampling": {"max_tokens": TURN_TOKENS},
        },
        "inference": {"kv_cache_gib": 0.5, "engine_args": {"enforce_eager": True}},
        "buffer": {"max_staleness": work.staleness},
        "trainer": {
            "ranks": 1,
            "groups_per_step": work.completions // GROUP,
            "token_budget": 1024,
            "optimizer": {"lr": work.lr, "decay": "linear", "warmup_steps": WARMUP},
        },
        "checkpoint": {"every": 0},
        "wandb": {"mode": "disabled"},
    }
    if work.lora:
        recipe["lora"] = {"rank": RANK, "alpha": ALPHA}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path
