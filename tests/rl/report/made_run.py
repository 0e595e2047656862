"""Small run directories, written through the product's own writers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from rl.observe.metrics_log import MetricsLog
from rl.observe.timeline import Event, Timeline
from rollout.store import eventlog
from rollout.store.reading import FOLDER
from rollout.store.segments import Segment
from rollout.store.trained import FOLDER as TRAINED
from rollout.store.trained import TrainedLog, TrainedSample
from rollout.types import Address, Group, Message, Sample, Span, Task, Trajectory, Turn
from tests.samples import failed_trajectory, sample_of

WORDS = ("<|user|>", "add", "1", "2", "<|assistant|>", "three", "two", "\n")
T0 = 1.7e9
ATTACK = "</script><img src=x onerror='document.title=1'><script>document.title=2</script>"
ADVANTAGES, LOGPROBS, TRAINED_LOGPROBS = (0.5, -1.5), (-0.25, -2.0), (-0.5, -1.0)


def make_run(run: Path, *, name: str = "made", steps: int = 2, groups: int = 2, summary: bool = True) -> Path:
    """A run of so many steps and groups a step, and an evaluation. Without a summary it goes on."""
    run.mkdir(parents=True)
    model = run / "model"
    model.mkdir()
    Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token=WORDS[0])).save(
        str(model / "tokenizer.json")
    )
    (run / "config.yaml").write_text(f"run:\n  name: {name}\nmodel:\n  path: {model}\n")
    if summary:
        ended = {"exit_reason": "finished", "steps": steps, "wall_s": 61.0}
        (run / "summary.json").write_text(json.dumps(ended | {"eval_success_before": 0.25, "eval_success_after": 0.5}))
    ledger, trained, segment = (
        eventlog.EventLog(run / eventlog.NAME),
        TrainedLog(run / TRAINED, 1e9),
        Segment(run / FOLDER),
    )
    ledger.append("started", start=1, seed=0)
    segment.append(group("eval-0-0", "held-out", 0), "eval")
    for step in range(1, steps + 1):
        for number in range(groups):
            one = group(f"g{step}-{number}", f"task-{number}", step)
            address = segment.append(one, "train")
            ledger.append("issued", id=one.id, task=asdict(one.task), position=number, version=step - 1)
            ledger.append("finished", id=one.id, address=[address.segment, address.record], versions=[0, step - 1])
            ledger.append("trained", step=step, ids=[one.id])
            trained.append(trained_samples(step, address))
    write_metrics(run, steps)
    return run


def write_metrics(run: Path, steps: int) -> None:
    log, line = MetricsLog(run / "metrics.jsonl"), Timeline(run / "timeline.jsonl")
    line.add(Event(step=0, name="starting Ray", start=T0 - 30, end=T0))
    for step in range(1, steps + 1):
        grad_norm = float("nan") if step == 1 else 2.0
        log.log(step, {"reward/mean": step / 4, "optim/grad_norm": grad_norm, "memory/driver_rss_mb": 100.0})
        start = T0 + 10 * step
        line.add(Event(step=step, name="wait_rollouts", start=start, end=start + 6, waited_for="3 of 4 groups"))
        line.add(Event(step=step, name="train", start=start + 6, end=start + 9))
    log.close()


def group(name: str, task: str, step: int) -> Group:
    members = (
        member(name, "three", 1.0, step),
        member(name, "two", 0.0, step),
        failed_trajectory(task, name, "the sandbox is gone"),
    )
    prompt = ({"role": "user", "content": f"add 1 2 {ATTACK}"},)
    return Group(
        id=name, task=Task(id=task, environment="reasoning", source="sums", messages=prompt), trajectories=members
    )


def member(name: str, word: str, reward: float, step: int) -> Trajectory:
    messages: Sequence[Message] = (
        {"role": "user", "content": f"add 1 2 {ATTACK}"},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "a lone surrogate: \ud800",
            "tool_calls": [{"type": "function", "function": {"name": "calculator", "arguments": {"sum": [1, 2]}}}],
        },
        {"role": "tool", "content": "unmistakable"},
        {"role": "assistant", "content": word},
    )
    start = T0 + 10 * step
    return Trajectory(
        task_id=name,
        group_id=name,
        samples=(sample(WORDS.index(word), step),),
        messages=tuple(messages),
        stop_reason="answered",
        outcome="scored",
        reward=reward,
        success=reward > 0,
        reward_parts={"answer": reward},
        turns=(Turn(sample=0, start=5, stop=7),),
        spans=(Span(name="generate", start=start, end=start + 4), Span(name="reward", start=start + 4, end=start + 5)),
        metrics={"tool_calls": 1.0},
    )


def sample(word: int, step: int) -> Sample:
    return sample_of(
        token_ids=[0, 1, 2, 3, 4, word, 7],
        loss_mask=[0, 0, 0, 0, 0, 1, 1],
        logprobs=[0, 0, 0, 0, 0, *LOGPROBS],
        versions=[-1, -1, -1, -1, -1, max(step - 2, 0), max(step - 1, 0)],
    )


def trained_samples(step: int, address: Address) -> list[TrainedSample]:
    """The two trajectories that were trained, the second with the advantages' signs turned."""
    advantages, logprobs = (np.array(values, np.float32) for values in (ADVANTAGES, TRAINED_LOGPROBS))
    return [
        TrainedSample(step=step, address=address, sample=i, advantages=sign * advantages, logprobs=logprobs)
        for i, sign in enumerate((1, -1))
    ]
