"""Measure a step of on-policy GRPO against TRL's on the same machine: the same random model, prompts, batch and tokens.

The model is the quickstart's tiny GLM-4.5-style MoE with random weights, float32. Completions end after TOKENS tokens;
some end earlier, where a stop token is sampled. The reward is a share of letters, so that groups have something to
learn from. Both sides have two cores: TRL two threads, which generate and then train; Sluice one thread for the engine
and one for the trainer, which work at the same time (`max_staleness` 1). Sluice's prompts are in GLM-4.5's chat format,
which makes them a little longer.

TRL needs an environment of its own, which sees this one's packages:

    python3 -m venv TRL && echo $PWD/.venv/lib/python3.11/site-packages > TRL/lib/python3.11/site-packages/sluice.pth
    TRL/bin/pip install --no-deps trl==1.16.0
    .venv/bin/python -m benchmarks.against_trl --trl TRL/bin/python [--completions 64,256] [--rounds 3]
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from rollout.contracts import Environment, EnvironmentSpec
from rollout.types import Split, Task

MODEL = Path("recipes/models/tiny-glm4-moe")
TOKENS, GROUP, STEPS, SKIPPED = 54, 8, 14, 4
PROMPT = "Write as many vowels as you can, number {}."


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


def make_model(folder: Path) -> Path:
    """Save the model with random weights, so that both sides begin with the same."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    shutil.copytree(MODEL, folder / "model")
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(MODEL), dtype=torch.float32)
    model.save_pretrained(folder / "model")
    return folder / "model"


def sluice(model: Path, completions: int, folder: Path) -> tuple[float, float]:
    """Run Sluice. Return the seconds of a step, and the sampled tokens a second."""
    recipe = {
        "run": {"name": "against-trl", "steps": STEPS, "dir": str(folder / "run"), "device": "cpu"},
        "model": {"path": str(model), "dtype": "float32", "renderer": "glm-4.5"},
        "tasks": {"sources": [{"environment": "benchmarks.against_trl:Vowels"}], "eval_size": 1},
        "rollout": {
            "groups_per_worker": 2 * completions // GROUP,
            "group_size": GROUP,
            "max_turns": 1,
            "max_context": 256,
            "sampling": {"max_tokens": TOKENS},
        },
        "inference": {"engine_args": {"enforce_eager": True}},
        "buffer": {"max_staleness": 1},
        "trainer": {
            "ranks": 1,
            "groups_per_step": completions // GROUP,
            "token_budget": 8192,
            "optimizer": {"lr": 1e-4},
        },
        "checkpoint": {"every": 0},
        "wandb": {"mode": "disabled"},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    environment = os.environ | {"SLUICE_VENV": sys.prefix}
    subprocess.run(["./launch.sh", str(folder / "recipe.yaml")], env=environment, check=True, stdout=subprocess.DEVNULL)
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "time/step_s" in line][SKIPPED:]
    seconds = statistics.fmean(step["time/step_s"] for step in steps)
    tokens = statistics.fmean(step["perf/sampled_tokens_per_s"] * step["time/step_s"] for step in steps)
    return seconds, tokens / seconds


def trl(python: str, model: Path, completions: int, folder: Path) -> tuple[float, float]:
    """Run TRL in its own environment. Return the same."""
    out = folder / "trl.json"
    command = [python, "-m", "benchmarks.against_trl", "--inside", str(model), str(completions), str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    found: dict[str, float] = json.loads(out.read_text())
    return found["step_s"], found["tokens_per_s"]


def inside_trl(model: str, completions: int, out: str) -> None:
    """TRL's side, in its environment."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    trl = importlib.import_module("trl")  # in an environment of its own, and no package of ours
    torch.set_num_threads(2)
    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    config = trl.GRPOConfig(
        output_dir=str(Path(out).with_suffix("")),
        per_device_train_batch_size=completions,
        num_generations=GROUP,
        max_completion_length=TOKENS,
        max_steps=STEPS,
        learning_rate=1e-4,
        beta=0.0,
        temperature=1.0,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
    )
    trainer = trl.GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        reward_funcs=lambda completions, **_: [vowels(text) for text in completions],
        args=config,
        train_dataset=Dataset.from_list([{"prompt": PROMPT.format(i)} for i in range(STEPS * completions)]),
        processing_class=tokenizer,
        callbacks=[Clock()],
    )
    trainer.train()
    lengths = [
        line["completions/mean_length"] for line in trainer.state.log_history if "completions/mean_length" in line
    ]
    step_s = (ends[-1] - ends[SKIPPED - 1]) / (STEPS - SKIPPED)
    tokens = statistics.fmean(lengths[SKIPPED:]) * completions
    Path(out).write_text(json.dumps({"step_s": step_s, "tokens_per_s": tokens / step_s}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl", help="the Python of TRL's environment")
    parser.add_argument("--completions", default="64,256", help="comma-separated: completions of a step")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--inside", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        inside_trl(options.inside[0], int(options.inside[1]), options.inside[2])
        return
    print("| completions | round | TRL, s a step | tokens/s | Sluice, s a step | tokens/s | tokens/s over TRL's |")
    print("|---|---|---|---|---|---|---|")
    for completions in map(int, options.completions.split(",")):
        for number in range(1, options.rounds + 1):
            with tempfile.TemporaryDirectory(prefix="trl-", dir="/tmp") as name:
                folder = Path(name)
                model = make_model(folder)
                theirs = trl(options.trl, model, completions, folder)
                ours = sluice(model, completions, folder)
            told = f"{theirs[0]:.2f} | {theirs[1]:,.0f} | {ours[0]:.2f} | {ours[1]:,.0f} | {ours[1] / theirs[1]:.2f}"
            print(f"| {completions} | {number} | {told} |", flush=True)


if __name__ == "__main__":
    main()
