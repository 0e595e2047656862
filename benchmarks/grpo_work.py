"""The work of `benchmarks.against_trl` and `benchmarks.floor`: a random model, a one-turn task, and Sluice's recipe."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from rollout.contracts import Environment, EnvironmentSpec
from rollout.types import Split, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MODEL = Path("recipes/models/tiny-glm4-moe")
GROUP, STEPS, SKIPPED = 8, 14, 4
LR = 1e-6
"""So small that completions keep their lengths."""
PROMPT = "Write as many vowels as you can, number {}."


@dataclass(frozen=True, slots=True)
class Work:
    """A step's `completions`, of at most `tokens` tokens. If they are `long_tailed`, they have `MEAN` on average and
    end like a radioactive decay; else few end before `tokens`."""

    completions: int
    tokens: int
    long_tailed: bool

    @property
    def name(self) -> str:
        return f"{self.completions} long-tailed" if self.long_tailed else str(self.completions)


MEAN = 43
WORKS = {work.name: work for work in (Work(64, 54, False), Work(256, 54, False), Work(64, 256, True))}


class Vowels(EnvironmentSpec):
    """One turn; the reward is the share of vowels in the answer."""

    name = "vowels"
    reward_parts = ("vowels",)

    def generate(self, index: int, seed: int, split: Split) -> Task:
        message = {"role": "user", "content": PROMPT.format(index)}
        return Task(id=f"{split}-{index}", environment=self.name, messages=(message,))

    def make(self, task: Task, sandbox: Any) -> Environment:
        return OneAnswer()


class OneAnswer(Environment):
    async def score(self, answer: str | None) -> dict[str, float]:
        return {"vowels": vowels(answer or "")}


def vowels(text: str) -> float:
    return sum(letter in "aeiou" for letter in text) / max(len(text), 1)


def make_model(folder: Path, work: Work) -> Path:
    """Save the model with random weights, so that both sides begin with the same."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    shutil.copytree(MODEL, folder / "model")
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(MODEL), dtype=torch.float32)
    if work.long_tailed:
        _end_after(model, MEAN, AutoTokenizer.from_pretrained(MODEL).eos_token_id, prompts(MODEL))
    model.save_pretrained(folder / "model")
    return folder / "model"


def _end_after(model: PreTrainedModel, tokens: int, stop: int, prompt: Callable[[int], list[int]]) -> None:
    """Give the token `stop` a bias, so that the answers to prompts have so many tokens on average. (TRL stops at one
    token only.)

    The head has no bias, so one feature of the hidden states is made constant, at which only that token looks.
    """
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                parameter[..., 0, :] = 0.0
        model.get_input_embeddings().weight[:, 0] = 2.0
        head = model.get_output_embeddings().weight
        head[:, 0] = 0.0
        begin, low, high = torch.tensor([prompt(number % 10) for number in range(160)]), 0.0, 320.0
        for _ in range(9):
            head[stop, 0] = (low + high) / 2
            said = model.generate(
                begin, attention_mask=torch.ones_like(begin), do_sample=True, top_k=0, max_new_tokens=256,
                eos_token_id=stop, pad_token_id=stop,
            )[:, begin.shape[1] :]  # fmt: skip
            mean = ((said != stop).sum() / len(said)).item() + 1
            low, high = (low, (low + high) / 2) if mean < tokens else ((low + high) / 2, high)


def prompts(model: Path) -> Callable[[int], list[int]]:
    """The tokens of prompt number i, in GLM-4.5's chat format."""
    from rollout.chat.config import RendererSettings
    from rollout.chat.registry import load_chat

    chat = load_chat(RendererSettings(name="glm-4.5"), model)
    return lambda number: chat.open([{"role": "user", "content": PROMPT.format(number)}], (), True)


def write_recipe(
    model: Path, work: Work, folder: Path, cache_policy: str = "recompute", max_staleness: int = 1
) -> Path:
    """Write Sluice's recipe for the work, with a run directory in `folder`. `cache_policy` says what a push does to the
    KV cache of running requests."""
    recipe = {
        "run": {"name": "against-trl", "steps": STEPS, "dir": str(folder / "run"), "device": "cpu"},
        "model": {"path": str(model), "dtype": "float32", "renderer": "glm-4.5"},
        "tasks": {"sources": [{"environment": "benchmarks.grpo_work:Vowels"}], "eval_size": 1},
        "rollout": {
            "groups_per_worker": (max_staleness + 1) * work.completions // GROUP,
            "group_size": GROUP,
            "max_turns": 1,
            "max_context": 512,
            "sampling": {"max_tokens": work.tokens},
        },
        "inference": {"engine_args": {"enforce_eager": True}},
        "buffer": {"max_staleness": max_staleness},
        "weight_sync": {"cache_policy": cache_policy},
        "trainer": {
            "ranks": 1,
            "groups_per_step": work.completions // GROUP,
            "token_budget": 8192,
            "optimizer": {"lr": LR},
        },
        "checkpoint": {"every": 0},
        "wandb": {"mode": "disabled"},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path
