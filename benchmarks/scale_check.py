"""The simulation against small real runs: constants from a run's own files, then its steps predicted and measured.

From its trajectories: the turns, with the time of each one's tools, and the engine's speed, fitted to the times of all
requests (seconds of a decoding step, more for each request beside it, and seconds of a request that are no decoding).
From its metrics: training, push, and what a step takes beside them. The first steps, and those with a checkpoint
before them, are left out on both sides.
"""

from __future__ import annotations

import json
import statistics
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from benchmarks.scale_simulation import EngineSpeed, Run, Simulation, Turn
from rollout.store.eventlog import NAME, read_events
from rollout.store.reading import read
from rollout.types import Trajectory

FIRST = 3
"""Steps that are left out: they fill the buffer."""
STEPS = 203
"""Steps of a simulation."""
STORE_S = 0.1
"""Assumed: half of the longest time that the store collects groups for an fsync."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Constants:
    """What a run says of itself. `turns` has those of each trajectory."""

    turns: Sequence[Sequence[Turn]]
    speed: EngineSpeed
    train_s: float
    push_s: float
    rest_s: float
    """Seconds of a step beside waiting, training and pushing."""
    trajectories: float
    """Trajectories of a step, to which these times belong."""
    pause_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """Means over steps, and the spread (standard deviation) of the first."""

    step_s: float
    spread_s: float
    age: float
    oldest: float
    ready: float


def compared(runs: Sequence[Path]) -> str:
    """The table: each run measured, and predicted by its own constants and by those of the first."""
    first = constants(runs[0])
    lines = [
        "| run | groups a step | max_staleness | step, s: measured | predicted | by the first run's | "
        "staleness: measured | predicted | by the first run's | groups waiting: measured | predicted | "
        "by the first run's |",
        f"|{'---|' * 12}",
    ]
    for run in runs:
        found, own, others = measured(run), predicted(run, constants(run)), predicted(run, first)
        settings = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        cells = (
            run.name,
            str(settings["trainer"]["groups_per_step"]),
            str(settings["buffer"]["max_staleness"]),
            f"{found.step_s:.2f} ± {found.spread_s:.2f}",
            *(f"{side.step_s:.2f} ({side.step_s / found.step_s - 1:+.0%})" for side in (own, others)),
            *(f"{side.age:.2f}" for side in (found, own, others)),
            *(f"{side.ready:.1f}" for side in (found, own, others)),
        )
        assert max(found.oldest, own.oldest, others.oldest) <= settings["buffer"]["max_staleness"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def measured(run: Path) -> Steps:
    """The run's own steps."""
    logged = steady(run)
    times = [values["time/step_s"] for values in logged]
    return Steps(
        step_s=statistics.mean(times),
        spread_s=statistics.stdev(times) / len(times) ** 0.5,
        age=statistics.mean(values["staleness/mean"] for values in logged),
        oldest=max(values["staleness/max"] for values in logged),
        ready=statistics.mean(left_behind(run)[FIRST:]),
    )


def predicted(run: Path, known: Constants) -> Steps:
    """The steps of a run with these settings and constants."""
    settings = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    rollout, trainer = settings["rollout"], settings["trainer"]
    per_trajectory = known.train_s / known.trajectories
    made = Run(
        engines=settings["inference"]["replicas"],
        speed=known.speed,
        groups_per_step=trainer["groups_per_step"],
        group_size=rollout["group_size"],
        max_staleness=settings["buffer"]["max_staleness"],
        slots=rollout["workers"] * rollout["groups_per_worker"],
        trajectory=lambda numbers: numbers.choice(known.turns),
        train_s=lambda tokens, trajectories: trajectories * per_trajectory,
        push_s=known.push_s,
        pause_s=known.push_s * min(1.0, known.pause_share),
        handling_s=known.rest_s / known.trajectories,
        recompute=settings["weight_sync"]["cache_policy"] == "recompute",
        steps=STEPS,
        ending_s=STORE_S,
    )
    steps = Simulation(made).go()[FIRST:]
    times = [step.step_s for step in steps]
    return Steps(
        step_s=statistics.mean(times),
        spread_s=statistics.stdev(times),
        age=statistics.mean(step.mean_age for step in steps),
        oldest=max(step.oldest for step in steps),
        ready=statistics.mean(step.ready for step in steps),
    )


def constants(run: Path) -> Constants:
    """What the run's files say."""
    members = [
        member
        for stored in read(run)
        if stored.split == "train" and (stored.step or 0) > FIRST
        for member in stored.group.usable
        if member.turns
    ]
    logged = steady(run)
    train_s, push_s = (
        statistics.mean(values[f"time/{name}_s"] for values in logged) for name in ("train", "weight_sync")
    )
    wait_s = statistics.mean(values["time/wait_rollouts_s"] for values in logged)
    step_s = statistics.mean(values["time/step_s"] for values in logged)
    stood = standstills(run)
    speed, request_s = engine_speed(members, stood)
    turns = [turns_of(member, request_s) for member in members]
    return Constants(
        turns=turns,
        speed=speed,
        train_s=train_s,
        push_s=push_s,
        rest_s=step_s - wait_s - train_s - push_s,
        trajectories=statistics.mean(values["rollout/trajectories"] for values in logged),
        pause_share=sum(end - begin for begin, end in stood) / len(stood) / push_s,
    )


def turns_of(member: Trajectory, request_s: float) -> list[Turn]:
    """The turns of a trajectory. Its reward's time belongs to the last one, and each request's own to its turn."""
    tools = [0.0]
    for span in member.spans:
        if span.name == "generate":
            tools.append(0.0)
        else:
            tools[-1] += span.end - span.start
    ends = [0, *(turn.stop for turn in member.turns)]
    return [
        Turn(observed=max(0, turn.start - end), sampled=len(turn), tools_s=request_s + seconds)
        for turn, end, seconds in zip(member.turns, ends, tools[1:], strict=False)
    ]


def engine_speed(members: Sequence[Trajectory], stood: Sequence[tuple[float, float]]) -> tuple[EngineSpeed, float]:
    """The speed that fits the times of all requests best, by least squares, and the seconds of a request beside. Time
    in which engines `stood` still for a push is not counted."""
    asked = [
        (span.start, span.end, len(turn))
        for member in members
        for span, turn in zip((s for s in member.spans if s.name == "generate"), member.turns, strict=False)
    ]
    begins, ends = sorted(begin for begin, _, _ in asked), sorted(end for _, end, _ in asked)
    rows, times = [], []
    for begin, end, tokens in asked:
        middle = (begin + end) / 2
        beside = bisect_right(begins, middle) - bisect_left(ends, middle)
        rows.append((tokens, tokens * beside, 1.0))
        paused = sum(max(0.0, min(end, until) - max(begin, since)) for since, until in stood)
        times.append(end - begin - paused)
    step_s, per_request_s, request_s = fitted(np.array(rows, dtype=float), np.array(times))
    return EngineSpeed(step_s=max(step_s, 1e-6), step_s_per_request=per_request_s), request_s


def fitted(rows: np.ndarray, times: np.ndarray) -> list[float]:
    """Least squares without negative coefficients: one that would be negative is left out."""
    kept = list(range(rows.shape[1]))
    while True:
        found = np.linalg.lstsq(rows[:, kept], times, rcond=None)[0]
        if (found >= 0).all():
            values = dict(zip(kept, found.tolist(), strict=True))
            return [values.get(column, 0.0) for column in range(rows.shape[1])]
        kept.pop(int(found.argmin()))


def standstills(run: Path) -> list[tuple[float, float]]:
    """When engines stood still: at the end of each push, for as long as the timeline says."""
    found = []
    for line in (run / "timeline.jsonl").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        if entry["name"] == "weight_sync" and "stood still for " in entry["waited_for"]:
            paused = float(entry["waited_for"].rpartition("stood still for ")[2].split()[0])
            found.append((entry["end"] - paused, entry["end"]))
    return found


def steady(run: Path) -> list[dict[str, float]]:
    """The metrics of the steps that are compared."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    logged = [values for values in map(json.loads, lines) if "time/step_s" in values]
    return [values for values in logged if values["step"] > FIRST and "time/checkpoint_s" not in values]


def left_behind(run: Path) -> list[int]:
    """The finished groups that each step left in the buffer, from the ledger's log."""
    finished, counts = 0, []
    for event in read_events(run / NAME):
        if event["event"] == "finished":
            finished += 1
        elif event["event"] == "taken":
            finished -= len(event["ids"])
            counts.append(finished)
    return counts
