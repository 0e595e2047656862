"""The objects and numbers that the stages of a run share, and the record of the current step.

`rl.driver.drive` opens a session before the first stage and closes it after the last, whatever happens.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from ray.actor import ActorHandle

from rl.config import Recipe
from rl.driver.cluster import Cluster
from rl.driver.engines import Engines
from rl.driver.turns import Split
from rl.driver.waiting import Calls, Started
from rl.observe.alerts import Alerts
from rl.observe.console import Console
from rl.observe.forecast import Forecast
from rl.observe.metrics_log import MetricsLog
from rl.observe.timeline import Event, Timeline
from rl.observe.tracking.trackers import Trackers
from rl.processes.watchdog import Watchdog
from rl.rundir.checkpoint import ADAPTER, MODEL, CheckpointStore
from rl.rundir.directory import RunDir
from rl.rundir.progress import Progress
from rl.rundir.runstate import read_buffer
from rollout.actors.buffer import TakeAnswer
from rollout.buffer.buffer import BufferState
from rollout.cards import Card
from rollout.clock import now
from rollout.store.shared import RunFolder
from rollout.types import Task

STALE = "reissued/stale"


@dataclass(slots=True)
class StepRecord:
    """The metrics of the current step, and what the buffer last reported about itself."""

    started: float
    ledger_counts: dict[str, int]
    stale_before: int
    """Groups that had been dropped as stale when the step began."""
    values: dict[str, float] = field(default_factory=dict)
    arrivals: int = 0
    waiting_for: str = "it was not asked yet"

    def count_tasks(self, counts: Mapping[str, int]) -> None:
        """Store the ledger's counts, and as a metric the number of groups dropped as stale since the step began."""
        self.values["rollout/dropped_stale"] = float(counts.get(STALE, 0) - self.stale_before)
        self.ledger_counts = dict(counts)

    def begin(self) -> None:
        """Start timing the next step. Time spent before this call is not counted in it."""
        self.values, self.started = {}, time.monotonic()
        self.stale_before = self.ledger_counts.get(STALE, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluating:
    """An evaluation under way: of which step and version, and its calls."""

    step: int
    version: int
    started: Started


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadingBack:
    """A read-back under way: of the weights after which step, and by which engines."""

    step: int
    engines: Mapping[int, ActorHandle]


@dataclass(slots=True)
class Session:
    """One run: its recipe, its processes, and where it writes and reports. Wall time counts from `started`."""

    recipe: Recipe
    run_id: str
    directory: RunDir
    console: Console
    cluster: Cluster
    tracker: Trackers
    metrics: MetricsLog
    timeline: Timeline
    watchdog: Watchdog
    checkpoints: CheckpointStore
    progress: Progress
    started: float
    step: StepRecord
    forecast: Forecast
    alerts: Alerts
    engines: Engines = field(init=False)
    """Once they have been started."""
    buffer_began: Started = field(default_factory=dict)
    held_out: Sequence[Task] = ()
    """The tasks of every evaluation, once they have been read."""
    evaluating: Evaluating | None = None
    reading_back: ReadingBack | None = None
    turns: Split = field(default_factory=Split)
    settled_segments: set[int] = field(default_factory=set)
    """The segments of the trajectory store that earlier starts wrote, or that were sealed when `trajectories.keep_gb`
    was last looked at. Nobody writes to them, and the log has all of their groups."""
    first_trained: int = 0
    """No earlier start of the run wrote to the file of trained tokens with this number, or a larger one."""

    @property
    def calls(self) -> Calls:
        return self.cluster.calls

    @property
    def buffer(self) -> ActorHandle:
        assert self.cluster.buffer is not None, "processes are started first"
        return self.cluster.buffer

    @property
    def folder(self) -> RunFolder:
        """The run directory, as the processes on all machines use it."""
        return RunFolder(path=str(self.directory.path), run_id=self.run_id)

    @contextmanager
    def phase(self, name: str, *, timed: bool = False) -> Iterator[None]:
        """Show a phase outside the training steps on the console, with its duration. `timed` says that its time is
        `timed`, too, under another name."""
        self.watchdog.beat(name)
        start = now()
        with self.console.phase(name):
            yield
        if not timed:
            self.timeline.add(Event(step=self.progress.step, name=name, start=start, end=now()))
        self.watchdog.beat(f"{name}: done")

    @contextmanager
    def timed(self, name: str, step: int | None = None) -> Iterator[list[str]]:
        """Time a part of a step: its seconds are added to `time/<name>_s`. What it waits for may be appended to the
        list, in words. `step` is the one that it belongs to, if that is not the one after the last finished one."""
        self.watchdog.beat(name)
        start, waited_for, step = now(), list[str](), self.progress.step + 1 if step is None else step
        yield waited_for
        end, key = now(), f"time/{name}_s"
        self.step.values[key] = self.step.values.get(key, 0.0) + end - start
        self.timeline.add(Event(step=step, name=name, start=start, end=end, waited_for="; ".join(waited_for)))
        self.forecast.note(name, end - start)

    def supervised_step(self, step: int, total: int, loss: float) -> None:
        """Report that `step` of the `total` steps of the supervised stage are done."""
        self.watchdog.beat(f"supervised step {step}")
        self.console.stage_step("supervised cold start", step, total, loss)

    def observe_buffer(self, answer: TakeAnswer) -> None:
        """Store what the buffer reports. Finished groups count as progress, so a slow environment is not a stall."""
        if answer.arrivals != self.step.arrivals:
            self.watchdog.beat(f"{answer.arrivals} groups finished")
        self.step.arrivals, self.step.waiting_for = answer.arrivals, answer.waiting_for
        self.step.count_tasks(answer.counts)
        self.step.values["rollout/skipped_rows"] = float(answer.skipped_rows)

    def alert(self, title: str, text: str) -> None:
        """Tell of a danger to the run."""
        self.console.warn(f"{title}: {text}")
        self.tracker.alert(title, text)

    def engine_died(self, text: str) -> None:
        """Tell of an engine that is started again, for which the watchdog gives time."""
        self.watchdog.beat("an engine is started again")
        self.alert("an engine died", text)

    def waiting(self) -> str:
        """A sentence that says who waits for whom, as far as the driver knows."""
        return f"{self.calls.waiting_for()}. The buffer, when it last answered: {self.step.waiting_for}"

    def log(self, values: dict[str, float], step: int | None = None) -> None:
        """Log metrics under the number of a step, of the last finished one unless another is named."""
        step = self.progress.step if step is None else step
        self.metrics.log(step, values)
        self.tracker.log(step, values)

    def end_step(self, cards: list[Card]) -> None:
        """Write the step's metrics and console line, then begin the next step."""
        seconds = time.monotonic() - self.step.started
        values = self.step.values
        sampled = sum(trajectory.trained_tokens for card in cards for trajectory in card.trajectories)
        values |= {
            "time/step_s": seconds,
            "perf/tokens_per_s": values.get("perf/trained_tokens", 0.0) / seconds,
            "perf/sampled_tokens_per_s": sampled / seconds,
            "memory/driver_rss_mb": psutil.Process().memory_info().rss / 2**20,
        }
        values["time/left_s"] = self.forecast.left_after(self.progress.step, values)
        self.log(values)
        self.console.step(self.progress.step, values)
        self.alerts.step(self.progress.step, values)
        self.step.begin()

    @property
    def finished(self) -> bool:
        """Whether every step and the last evaluation are done."""
        return self.progress.step >= self.recipe.run.steps and bool(self.progress.eval_after)

    def saved_buffer(self) -> BufferState | None:
        """The buffer's state in the newest checkpoint; None without one."""
        saved = self.checkpoints.latest()
        return read_buffer(saved) if saved is not None else None

    def wall_s(self) -> float:
        """Seconds this run has taken, including sessions before a resume."""
        return time.monotonic() - self.started

    def _exported(self, saved: Path | None) -> str | None:
        """The newest model that `from_pretrained` loads. A run with an adapter has one only at its end."""
        if self.recipe.lora is not None:
            return str(self.directory.merged) if self.directory.merged.is_dir() else None
        return str(saved / MODEL) if saved is not None else None

    def summary(self, exit_reason: str) -> dict[str, Any]:
        """The content of summary.json: how the run ended, and its results."""
        saved = self.checkpoints.latest()
        before, after, counts = self.progress.eval_before, self.progress.eval_after, self.step.ledger_counts
        return {
            "exit_reason": exit_reason,
            "steps": self.progress.step,
            "policy_version": self.progress.version,
            "wall_s": round(self.wall_s(), 1),
            "eval_success_before": before.get("eval/success"),
            "eval_success_after": after.get("eval/success"),
            "eval_before": dict(before),
            "eval_after": dict(after),
            "staleness_max": self.progress.staleness_max,
            "mismatch_logprob_abs_mean": _finite(self.progress.mismatch_mean),
            "trained_tokens": self.progress.trained_tokens,
            "tasks_issued": counts.get("issued", 0),
            "tasks_trained": counts.get("trained", 0),
            "tasks_dropped": counts.get("dropped", 0),
            "checkpoint": str(saved) if saved is not None else None,
            "adapter": str(saved / ADAPTER) if saved is not None and self.recipe.lora is not None else None,
            "hf_export": self._exported(saved),
            "best": str(self.directory.best) if self.directory.best.is_dir() else None,
        }


def _finite(value: float | None) -> float | None:
    """Replace NaN and infinity by None, because JSON cannot hold them."""
    return value if value is not None and math.isfinite(value) else None
