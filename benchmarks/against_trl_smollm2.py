"""Measure GRPO of SmolLM2-135M against TRL's on the same machine: the same tasks, batch, group, lengths, learning rate.

The work is recipes/smollm2_lora.yaml's: sums, asked in ChatML, graded by the last number of the answer. In *LoRA* an
adapter of rank 16 around all linear layers is trained, in *full* all weights. In *3 turns* the first two turns are
answered by a calculator after a while (median 0.5 s, 99th percentile 5 s); TRL gets it as an asynchronous tool, which
its parse of a completion always calls. A turn that is cut ends the episode on both sides. TRL generates with
transformers (its vLLM cannot load weights on CPU) on two threads; Sluice has one thread for the engine and one for the
trainer.

*Tokens* are all that were sampled for a step. Of groups whose rewards are equal Sluice computes nothing, TRL zeros.
*Reward* is the mean of the last steps, with Wilson's interval of 95 %. Memory is each process's peak (RSS) and, for all
processes of a run together, the peak of their summed PSS.

TRL needs an environment of its own (see benchmarks/against_trl.py).

    .venv/bin/python -m benchmarks.against_trl_smollm2 --trl TRL/bin/python [--work "LoRA;full"]
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

from benchmarks.smollm2_seeds import interval
from benchmarks.smollm2_work import (
    ALPHA,
    GROUP,
    MODEL,
    RANK,
    SKIPPED,
    TURN_TOKENS,
    WARMUP,
    WORKS,
    Work,
    latency_s,
    tasks,
    told,
    write_recipe,
)  # fmt: skip

LAST = 4
"""Steps whose rewards are compared."""
COLUMNS = (
    "work", "TRL, s a step", "tokens/s", "Sluice, s a step", "tokens/s", "ratio", "TRL's reward", "Sluice's",
    "TRL's memory, GB", "trainer's", "all processes",
)  # fmt: skip


class Watch(threading.Thread):
    """Samples the memory of a process and of all below it: the peak of their sum, and each part at that time."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid = pid
        self.peak = 0.0
        self.parts: dict[str, float] = {}

    def run(self) -> None:
        while psutil.pid_exists(self._pid):
            parts: Counter[str] = Counter()
            try:
                for process in [psutil.Process(self._pid), *psutil.Process(self._pid).children(recursive=True)]:
                    parts[self._role(process)] += process.memory_full_info().pss / 1e9
            except psutil.Error:
                continue
            if parts.total() > self.peak:
                self.peak, self.parts = parts.total(), dict(parts)
            time.sleep(2)

    def _role(self, process: psutil.Process) -> str:
        try:
            log = Path(os.readlink(f"/proc/{process.pid}/fd/2"))
        except OSError:
            return "Ray"
        return log.stem.rpartition("-")[0] or log.stem if log.parent.name == "logs" else "driver and Ray"


def sluice(work: Work, folder: Path) -> dict[str, Any]:
    """Run Sluice in `folder`, and return what is compared."""
    environment = os.environ | {"SLUICE_VENV": sys.prefix}
    process = subprocess.Popen(
        ["./launch.sh", str(write_recipe(work, folder))], env=environment, stdout=subprocess.DEVNULL
    )
    watch = Watch(process.pid)
    watch.start()
    assert process.wait() == 0, "the run failed"
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "time/step_s" in line]
    timed = steps[SKIPPED:]
    seconds = statistics.fmean(step["time/step_s"] for step in timed)
    return {
        "step_s": seconds,
        "tokens_per_s": statistics.fmean(s["perf/sampled_tokens_per_s"] * s["time/step_s"] for s in timed) / seconds,
        "rewards": [step["reward/mean"] for step in steps],
        "trainer_gb": max(step.get("memory/trainer_rss_mb", 0.0) for step in steps) * 2**20 / 1e9,
        "tree_gb": watch.peak,
        "parts": watch.parts,
        "parts_of_step": {
            name: statistics.fmean(step.get(f"time/{name}_s", 0.0) for step in timed)
            for name in ("wait_rollouts", "train", "weight_sync")
        },
    }


def trl(python: str, work: Work, folder: Path) -> dict[str, Any]:
    """Run TRL in its own environment, and return what is compared."""
    out = folder / "trl.json"
    command = [python, "-m", "benchmarks.against_trl_smollm2", "--inside", work.name, str(out)]
    with (folder / "trl.log").open("w") as log:
        done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "2"}, stdout=log, stderr=log)
    if done.returncode:
        sys.exit((folder / "trl.log").read_text()[-4000:])
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def inside_trl(work: Work, out: Path) -> None:
    """TRL's side, in its environment."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    trl = importlib.import_module("trl")  # in an environment of its own, and no package of ours
    torch.set_num_threads(2)
    ends: list[float] = []
    sampled: list[int] = [0]
    spec = tasks()
    rows = [spec.generate(index, 0, "train") for index in range(work.steps * work.completions // GROUP)]
    answers = {str(task.messages[-1]["content"]): str(task.metadata["answer"]) for task in rows}
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    tokenizer.pad_token = "<|endoftext|>"

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())
            sampled.append(0)

    class Trainer(trl.GRPOTrainer):  # type: ignore[misc, name-defined]
        """Counts what is sampled."""

        def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
            found = super()._generate_single_turn(*args, **kwargs)
            sampled[-1] += sum(map(len, found[0]))
            return found

    async def calculator(answer: str) -> str:
        """Calculate.

        Args:
            answer: The number to say.
        """
        import asyncio

        await asyncio.sleep(latency_s(random.Random()))
        return told(answer)

    def parse(ids: list[int], prefix: list[int] | None = None, **_: Any) -> dict[str, Any]:
        """A completion as a message that calls the calculator, unless it was cut."""
        said = {"role": "assistant", "content": tokenizer.decode(ids, skip_special_tokens=True)}
        if ids[-1] != tokenizer.eos_token_id:
            return said
        asked = tokenizer.decode(prefix or [])
        answer = next(answer for question, answer in answers.items() if question in asked)
        call = {"type": "function", "function": {"name": "calculator", "arguments": {"answer": answer}}}
        return said | {"tool_calls": [call]}

    def solved(completions: list[list[dict[str, Any]]], answer: list[str], **_: Any) -> list[float]:
        said = [[m["content"] for m in completion if m["role"] == "assistant"] for completion in completions]
        numbers = [re.findall(r"-?\d+(?:\.\d+)?", turns[-1]) for turns in said]
        return [
            float(len(turns) == 1 + work.calls and bool(found) and float(found[-1]) == float(right))
            for turns, found, right in zip(said, numbers, answer, strict=True)
        ]

    tools: dict[str, Any] = {}
    if work.calls:
        tools = {"tools": [calculator]}
        tokenizer.parse_response = parse
        tokenizer.response_template = {}  # TRL asks whether there is one; `parse` stands for it
        # TRL also wants a template that shows calls. It never renders a history again, so nothing else changes.
        tokenizer.chat_template = tokenizer.chat_template.replace(
            "message['content'] +", "message['content'] + (message.tool_calls | tojson if message.tool_calls else '') +"
        )
    config = trl.GRPOConfig(
        output_dir=str(out.with_suffix("")),
        per_device_train_batch_size=work.completions,
        num_generations=GROUP,
        max_completion_length=TURN_TOKENS if not work.calls else 200,
        generation_kwargs={"max_new_tokens": TURN_TOKENS},
        max_tool_calling_iterations=work.calls or None,
        max_steps=work.steps,
        learning_rate=work.lr,
        lr_scheduler_type="linear",
        warmup_steps=WARMUP,
        adam_beta2=0.95,
        beta=0.0,
        temperature=1.0,
        shuffle_dataset=False,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
    )
    trainer = Trainer(
        model=AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32),
        reward_funcs=solved,
        args=config,
        train_dataset=Dataset.from_list(
            [{"prompt": list(task.messages), "answer": str(task.metadata["answer"])} for task in rows]
        ),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear") if work.lora else None,
        callbacks=[Clock()],
        **tools,
    )
    trainer.train()
    step_s = (ends[-1] - ends[SKIPPED - 1]) / (work.steps - SKIPPED)
    out.write_text(
        json.dumps(
            {
                "step_s": step_s,
                "tokens_per_s": statistics.fmean(sampled[SKIPPED : work.steps]) / step_s,
                "rewards": [line["reward"] for line in trainer.state.log_history if "reward" in line],
                "rss_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
            }
        )
    )


def shown(rewards: list[float], work: Work) -> str:
    share = statistics.fmean(rewards[-LAST:])
    low, high = interval(share, LAST * work.completions)
    return f"{share:.2f} ({low:.2f}–{high:.2f})"


def measure(python: str, work: Work) -> tuple[str, str]:
    """One row of the table, and what lies behind it."""
    with tempfile.TemporaryDirectory(prefix="trl-", dir="/tmp") as name:
        ours, theirs = sluice(work, Path(name)), trl(python, work, Path(name))
    row = (
        f"| {work.name} | {theirs['step_s']:.1f} | {theirs['tokens_per_s']:,.0f} | {ours['step_s']:.1f} | "
        f"{ours['tokens_per_s']:,.0f} | {ours['tokens_per_s'] / theirs['tokens_per_s']:.2f} | "
        f"{shown(theirs['rewards'], work)} | {shown(ours['rewards'], work)} | {theirs['rss_gb']:.2f} | "
        f"{ours['trainer_gb']:.2f} | {ours['tree_gb']:.2f} |"
    )
    parts = ", ".join(f"{role} {size:.2f}" for role, size in sorted(ours["parts"].items()))
    step = ", ".join(f"{part} {seconds:.1f}" for part, seconds in ours["parts_of_step"].items())
    curves = [" ".join(f"{reward:.2f}" for reward in side["rewards"]) for side in (theirs, ours)]
    return row, f"{work.name}: step {step} s; GB at the peak: {parts}\n  TRL {curves[0]}\n  Sluice {curves[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl", help="the Python of TRL's environment")
    parser.add_argument("--work", default=";".join(WORKS), help="semicolon-separated")
    parser.add_argument("--inside", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        inside_trl(WORKS[options.inside[0]], Path(options.inside[1]))
        return
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS), flush=True)
    behind = []
    for name in options.work.split(";"):
        row, more = measure(options.trl, WORKS[name])
        behind.append(more)
        print(row, flush=True)
    print("\n" + "\n".join(behind))


if __name__ == "__main__":
    main()
