"""The work of `benchmarks.against_trl` and `benchmarks.floor`: a random model, a one-turn task, and Sluice's recipe."""

from __future__ import annotations

import shutil
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
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    shutil.copytree(MODEL, folder / "model")
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(MODEL), dtype=torch.float32)
    if work.long_tailed:
        _end_after(model, MEAN)
    model.save_pretrained(folder / "model")
    return folder / "model"


def _end_after(model: PreTrainedModel, tokens: int) -> None:
    """Give the stop tokens a bias, so that after each token a completion ends with a probability of 1 / `tokens`.

    The head has no bias, so one feature of the hidden states is made constant, at which only those tokens look.
    """
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                parameter[..., 0, :] = 0.0
        model.get_input_embeddings().weight[:, 0] = 2.0
        head, stops = model.get_output_embeddings().weight, list(model.config.eos_token_id)
        head[:, 0] = 0.0
        ids = torch.randint(model.config.vocab_size, (16, 64))
        low, high = -20.0, 20.0
        for _ in range(30):
            head[stops, 0] = (low + high) / 2
            ends = model(ids).logits.softmax(-1)[..., stops].sum(-1).mean()
            low, high = (low, (low + high) / 2) if ends > 1 / tokens else ((low + high) / 2, high)


def write_recipe(model: Path, work: Work, folder: Path) -> Path:
    """Write Sluice's recipe for the work, with a run directory in `folder`."""
    recipe = {
        "run": {"name": "against-trl", "steps": STEPS, "dir": str(folder / "run"), "device": "cpu"},
        "model": {"path": str(model), "dtype": "float32", "renderer": "glm-4.5"},
        "tasks": {"sources": [{"environment": "benchmarks.grpo_work:Vowels"}], "eval_size": 1},
        "rollout": {
            "groups_per_worker": 2 * work.completions // GROUP,
            "group_size": GROUP,
            "max_turns": 1,
            "max_context": 512,
            "sampling": {"max_tokens": work.tokens},
        },
        "inference": {"engine_args": {"enforce_eager": True}},
        "buffer": {"max_staleness": 1},
        "trainer": {
            "ranks": 1,
            "groups_per_step": work.completions // GROUP,
            "token_budget": 8192,
            "optimizer": {"lr": 1e-4},
        },
        "checkpoint": {"every": 0},
        "wandb": {"mode": "disabled"},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path
