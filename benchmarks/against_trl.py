"""Measure a step of on-policy GRPO against TRL's on the same machine: the same random model, prompts, batch and tokens.

The model is the quickstart's tiny GLM-4.5-style MoE with random weights, float32. Completions have at most 54 tokens,
50 on average, or they are long-tailed: about 43 tokens on average, at most 256. The reward is a share of letters. Both
sides have two cores: TRL two threads, which generate and then train; Sluice one thread for the engine and one for the
trainer, which work at the same time (`max_staleness` 1, or `--staleness`). Prompts are in GLM-4.5's chat format on both
sides.

The last columns compare with the slower of engine and trainer alone (`benchmarks.floor`). What pushes take from the
engine is left out there: the push itself, and that the engine computes the KV cache of running requests again with the
new weights. What the latter takes is the difference to a second run, which keeps the cache (`cache_policy: keep`).

TRL needs an environment of its own, which sees this one's packages:

    python3 -m venv TRL && echo $PWD/.venv/lib/python3.11/site-packages > TRL/lib/python3.11/site-packages/sluice.pth
    TRL/bin/pip install --no-deps trl==1.16.0
    .venv/bin/python -m benchmarks.against_trl --trl TRL/bin/python [--work "64,256,64 long-tailed"] [--rounds 3] \\
        [--staleness 1]
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import floor
from benchmarks.grpo_work import GROUP, LR, SKIPPED, STEPS, WORKS, Work, make_model, prompts, vowels, write_recipe

COLUMNS = (
    "completions", "round", "TRL, s a step", "tokens/s", "Sluice, s a step", "tokens/s", "over TRL's",
    "waiting, s", "training, s", "push, s", "cache again, s",
    "engine alone, tokens/s", "trainer alone, tokens/s", "of the slower",
)  # fmt: skip


def sluice(model: Path, work: Work, folder: Path, cache_policy: str, staleness: int) -> dict[str, float]:
    """Run Sluice in `folder`. Return the means of a step's metrics, and its sampled `tokens`."""
    folder.mkdir()
    environment = os.environ | {"SLUICE_VENV": sys.prefix}
    command = ["./launch.sh", str(write_recipe(model, work, folder, cache_policy, staleness))]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "time/step_s" in line][SKIPPED:]
    for step in steps:
        step["tokens"] = step["perf/sampled_tokens_per_s"] * step["time/step_s"]
    names = ("tokens", "time/step_s", "time/wait_rollouts_s", "time/train_s", "time/weight_sync_s")
    return {name: statistics.fmean(step[name] for step in steps) for name in names}


def trl(python: str, model: Path, work: Work, folder: Path) -> tuple[float, float]:
    """Run TRL in its own environment. Return the seconds of a step, and the sampled tokens a second."""
    out = folder / "trl.json"
    command = [python, "-m", "benchmarks.against_trl", "--inside", str(model), work.name, str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    found: dict[str, float] = json.loads(out.read_text())
    return found["step_s"], found["tokens_per_s"]


def inside_trl(model: str, work: Work, out: str) -> None:
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
    prompt = prompts(Path(model))
    config = trl.GRPOConfig(
        output_dir=str(Path(out).with_suffix("")),
        per_device_train_batch_size=work.completions,
        num_generations=GROUP,
        max_completion_length=work.tokens,
        max_steps=STEPS,
        learning_rate=LR,
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
        train_dataset=Dataset.from_list(
            [{"prompt": tokenizer.decode(prompt(i))} for i in range(STEPS * work.completions)]
        ),
        processing_class=tokenizer,
        callbacks=[Clock()],
    )
    trainer.train()
    lengths = [
        line["completions/mean_length"] for line in trainer.state.log_history if "completions/mean_length" in line
    ]
    step_s = (ends[-1] - ends[SKIPPED - 1]) / (STEPS - SKIPPED)
    tokens = statistics.fmean(lengths[SKIPPED:]) * work.completions
    Path(out).write_text(json.dumps({"step_s": step_s, "tokens_per_s": tokens / step_s}))


def measure(python: str, work: Work, number: int, staleness: int) -> str:
    """One row of the table: all in turn."""
    with tempfile.TemporaryDirectory(prefix="trl-", dir="/tmp") as name:
        folder = Path(name)
        model = make_model(folder, work)
        theirs_s, theirs = trl(python, model, work, folder)
        ours, kept = (sluice(model, work, folder / policy, policy, staleness) for policy in ("recompute", "keep"))
        engine, trainer = floor.measure(model, work, folder)
    step_s = ours["time/step_s"]
    speed, again_s = ours["tokens"] / step_s, step_s - kept["time/step_s"]
    of_slower = kept["tokens"] / (kept["time/step_s"] - kept["time/weight_sync_s"]) / min(engine, trainer)
    told = f"{theirs_s:.2f} | {theirs:,.0f} | {step_s:.2f} | {speed:,.0f} | {speed / theirs:.2f}"
    parts = " | ".join(f"{ours[f'time/{name}_s']:.2f}" for name in ("wait_rollouts", "train", "weight_sync"))
    floors = f"{engine:,.0f} | {trainer:,.0f} | {of_slower:.2f}"
    return f"| {work.name} | {number} | {told} | {parts} | {again_s:.2f} | {floors} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl", help="the Python of TRL's environment")
    parser.add_argument("--work", default=",".join(WORKS), help="comma-separated: completions of a step")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--staleness", type=int, default=1)
    parser.add_argument("--inside", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        inside_trl(options.inside[0], WORKS[options.inside[1]], options.inside[2])
        return
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    for name in options.work.split(","):
        for number in range(1, options.rounds + 1):
            print(measure(options.trl, WORKS[name], number, options.staleness), flush=True)


if __name__ == "__main__":
    main()
