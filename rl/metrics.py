"""Every metric this framework logs: one registry of names, each with its unit and meaning, and the file they go to.

`REGISTRY` is the only list: docs/metrics.md (`docs_page`) and wandb's definitions are generated from it, and logging a
name that isn't in it is an error. `MetricsLog` owns metrics.jsonl, the local truth about a run. `bottleneck` turns a
step's times into what to change. Nothing here computes a metric; the driver and the learner do.
"""

from __future__ import annotations

import difflib
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self


@dataclass(frozen=True, slots=True)
class Metric:
    """A name ending in `/<...>` stands for a family: any single last part is accepted in its place."""

    name: str
    unit: str
    meaning: str

    @property
    def is_family(self) -> bool:
        return self.name.endswith(">")

    @property
    def prefix(self) -> str:
        """What the members of a family begin with, slash included."""
        return self.name[: self.name.rindex("/") + 1]


_METRICS = (
    Metric("reward/mean", "reward", "Mean reward of the step's trajectories (infrastructure failures left out)."),
    Metric("reward/std", "reward", "Standard deviation of those rewards."),
    Metric("reward/part/<name>", "reward", "Mean of one named part of the reward, before its weight."),
    Metric("policy/version", "count", "Weight version after the step; the cold-started policy is version 0."),
    Metric("policy/entropy", "nats", "Mean entropy of the policy's next-token distribution at trained tokens."),
    Metric("policy/clip_fraction", "share", "Trained tokens whose importance ratio was clipped."),
    Metric("policy/ratio_mean", "ratio", "Mean importance ratio: trainer's probability over the sampling policy's."),
    Metric("policy/kl_behaviour", "nats", "Estimated KL from the sampling policy to the trained one, per token."),
    Metric("loss/policy", "loss", "Policy-gradient loss, normalised once by the global token count."),
    Metric("loss/sft", "nats", "Supervised cross-entropy per trained token."),
    Metric(
        "mismatch/logprob_abs_mean",
        "nats",
        "Mean |engine logprob - trainer logprob| over tokens sampled by the very version that is being trained.",
    ),
    Metric("mismatch/fresh_tokens", "tokens", "How many tokens that comparison is over; stale ones can't be compared."),
    Metric("staleness/mean", "versions", "Mean age of the trained tokens: policy version minus sampling version."),
    Metric("staleness/max", "versions", "Age of the oldest trained token; never above buffer.max_staleness."),
    Metric("rollout/success", "share", "Trajectories of the step that solved their task."),
    Metric("rollout/trajectories", "count", "Trajectories trained in the step."),
    Metric("rollout/turns_mean", "count", "Mean number of model turns of a trajectory."),
    Metric("rollout/tokens_mean", "tokens", "Mean number of sampled tokens of a trajectory."),
    Metric("rollout/truncated_share", "share", "Trajectories cut by a turn, token or time limit."),
    Metric("rollout/malformed_share", "share", "Trajectories that ended with a tool call that can't be parsed."),
    Metric("rollout/groups_zero_variance", "share", "Groups whose rewards are all equal: they teach GRPO nothing."),
    Metric("rollout/groups_unusable", "share", "Groups that infrastructure failures left nothing to compare in."),
    Metric("rollout/dropped_stale", "count", "Groups dropped in the step because they were older than the bound."),
    Metric("tools/calls_mean", "count", "Mean number of tool calls of a trajectory."),
    Metric("tools/error_share", "share", "Tool calls that returned an error to the model."),
    Metric("error/infra_share", "share", "Recent trajectories lost to an infrastructure failure."),
    Metric("moe/load_max_over_mean", "ratio", "Busiest expert's tokens over the mean; 1 is balanced. Worst layer."),
    Metric("optim/lr", "1/step", "Learning rate of the step."),
    Metric("optim/grad_norm", "norm", "Global gradient norm before clipping."),
    Metric("perf/tokens_per_s", "tokens/s", "Trained tokens over the wall time of the step."),
    Metric("perf/trained_tokens", "tokens", "Tokens that carried loss in the step."),
    Metric("perf/sampled_tokens_per_s", "tokens/s", "Tokens the step's trajectories sampled over its wall time."),
    Metric("time/step_s", "s", "Wall time of the step."),
    Metric("time/wait_rollouts_s", "s", "Time the trainer waited for finished groups."),
    Metric("time/train_s", "s", "Forward, backward and optimizer."),
    Metric("time/weight_sync_s", "s", "Publishing the new weights, from pause to resume."),
    Metric("time/generate_s", "s", "Time an average trajectory spent waiting for the engine (beside the other times)."),
    Metric("time/environment_s", "s", "Time an average trajectory spent in its environment, tools and rewards."),
    Metric("time/checkpoint_s", "s", "Writing the checkpoint and export that were due after the step before this one."),
    Metric("memory/driver_rss_mb", "MB", "Resident memory of the driver process."),
    Metric("memory/trainer_rss_mb", "MB", "Largest resident memory among the trainer ranks."),
    Metric("eval/success", "share", "Held-out trajectories that solved their task (infrastructure failures left out)."),
    Metric("eval/success/<environment>", "share", "The same, of one environment."),
    Metric("eval/infra_share", "share", "Held-out trajectories lost to an infrastructure failure."),
)

REGISTRY: dict[str, Metric] = {metric.name: metric for metric in _METRICS}
_FAMILIES = tuple(metric for metric in _METRICS if metric.is_family)

STEP_KEY = "step"
"""The one key of a metrics.jsonl line that is not a metric."""


def metric_for(name: str) -> Metric:
    """The registry entry of a concrete name; ValueError, with the nearest name, for one that isn't registered."""
    if name in REGISTRY and not REGISTRY[name].is_family:
        return REGISTRY[name]
    for family in _FAMILIES:
        member = name.removeprefix(family.prefix)
        if member != name and member and not set(member) & set("/<>"):
            return family
    nearest = difflib.get_close_matches(name, REGISTRY, n=1)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    raise ValueError(f"metric {name!r} is not registered: {hint}A new one is added to rl/metrics.py, with its unit")


def check_names(names: Iterable[str]) -> None:
    """ValueError for the first name that isn't registered."""
    for name in names:
        metric_for(name)


class Bottleneck(NamedTuple):
    name: str
    knob: str
    """The configuration key to turn first."""


_WAITING = Bottleneck("waiting for rollouts", "inference.replicas")
_ENVIRONMENT = Bottleneck("environment", "rollout.workers")
_STAGES = {
    "time/wait_rollouts_s": _WAITING,
    "time/train_s": Bottleneck("training", "trainer.ranks"),
    "time/weight_sync_s": Bottleneck("weight sync", "weight_sync.bucket_mb"),
}
BOTTLENECKS = (*_STAGES.values(), _ENVIRONMENT)


def bottleneck(times: Mapping[str, float]) -> Bottleneck:
    """What the step spent most of its time on. `times`: its `time/*` metrics; other keys are ignored, absent ones 0.

    Waiting for rollouts is put down to the environment when a trajectory spends longer there than with the engine.
    """
    longest = max(_STAGES, key=lambda name: times.get(name, 0.0))
    if longest == "time/wait_rollouts_s" and times.get("time/environment_s", 0.0) > times.get("time/generate_s", 0.0):
        return _ENVIRONMENT
    return _STAGES[longest]


def docs_page() -> str:
    """docs/metrics.md: `python -m rl.metrics > docs/metrics.md`."""
    lines = [
        "# Metrics",
        "",
        "Generated from rl/metrics.py by `.venv/bin/python -m rl.metrics > docs/metrics.md`; a test compares the two.",
        "Each line of a run's metrics.jsonl is one JSON object: `step` and some of these. `null` is a value that was",
        "not finite. A second line with the same step adds to the first one (the final evaluation does that).",
    ]
    section = ""
    for metric in _METRICS:
        if (prefix := metric.name.split("/")[0]) != section:
            section = prefix
            lines += ["", f"## {section}", "", "| name | unit | meaning |", "|---|---|---|"]
        lines.append(f"| `{metric.name}` | {metric.unit} | {metric.meaning.replace('|', chr(92) + '|')} |")
    lines += ["", "## The bottleneck of a step", "", "| it says | turn first |", "|---|---|"]
    lines += [f"| {name} | `{knob}` |" for name, knob in BOTTLENECKS]
    return "\n".join(lines) + "\n"


class MetricsLog:
    """metrics.jsonl: one JSON object per step, flushed line by line, so that a kill loses at most the line in flight.

    Opening it removes a half-written last line. Steps never go back: resuming calls `truncate_after` first.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.touch()
        self._repair()
        self._last_step = max((step for step, _ in read_metrics(path)), default=-1)
        self._file = path.open("a", encoding="utf-8")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line. ValueError for an unregistered name or a step before the last one."""
        check_names(values)
        if step < self._last_step:
            raise ValueError(
                f"step {step} after step {self._last_step} in {self._path}: call truncate_after({step - 1}) to go back"
            )
        row: dict[str, float | None] = {STEP_KEY: step}
        row |= {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps(row, allow_nan=False) + "\n")
        self._file.flush()
        self._last_step = step

    def truncate_after(self, step: int) -> None:
        """Drop the lines of later steps: they are beyond the checkpoint that the run goes on from."""
        self._file.close()
        lines = self._path.read_bytes().splitlines(keepends=True)
        kept = [line for line in lines if json.loads(line)[STEP_KEY] <= step]
        _replace(self._path, b"".join(kept))
        self._last_step = min(self._last_step, step)
        self._file = self._path.open("a", encoding="utf-8")

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _repair(self) -> None:
        raw = self._path.read_bytes()
        if raw and not raw.endswith(b"\n"):
            _replace(self._path, raw[: raw.rfind(b"\n") + 1])


def read_metrics(path: Path) -> list[tuple[int, dict[str, float]]]:
    """The steps of a metrics.jsonl in file order, non-finite values as NaN; a half-written last line is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        if line.endswith("\n"):
            row = json.loads(line)
            rows.append((row.pop(STEP_KEY), {k: math.nan if v is None else v for k, v in row.items()}))
    return rows


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


if __name__ == "__main__":
    print(docs_page(), end="")
