"""One run's session: everything that is opened before the loop and must be closed after it, whatever happens.

`drive` is the whole life of the driver process. It turns every way a run can end into an exit code, one message that
names what failed and where its log is, and a summary.json.

    0  finished                  2    nothing was started: the run directory or the hardware does not fit
    1  a process failed          75   stalled (rl.driver.watchdog)          130 / 143  SIGINT / SIGTERM
"""

from __future__ import annotations

import math
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from rl.config import Recipe
from rl.driver.cluster import Cluster, NoCluster, ProcessFailure
from rl.driver.health import Diverged
from rl.driver.processes import install_signal_handlers, kill_run
from rl.driver.stopping import Stopped
from rl.driver.watchdog import STALL_EXIT_CODE, Watchdog
from rl.observe.console import Console, duration
from rl.observe.metrics_log import MetricsLog
from rl.observe.tracking import Tracker
from rl.recipe import marked_yaml
from rl.recipe.load import derived, save_resolved
from rl.rundir.atomic import atomic_write_json
from rl.rundir.checkpoint import CheckpointStore
from rl.rundir.directory import RunDir
from rl.rundir.progress import Progress
from rl.rundir.runstate import read_buffer, read_progress
from rollout.actors.buffer import TakeAnswer
from rollout.buffer.buffer import BufferState, TooManyFailures
from rollout.buffer.ledger import Ledger
from rollout.types import Group

NOTHING_STARTED = 2
UPLOAD_S = 120.0
"""What wandb may take to send the last of a finished run; it is always on disk as well."""
TRACKER_S = 10.0
"""The same where something failed, and somebody waits for the exit."""


@dataclass(slots=True)
class Session:
    """What the steps of `rl.run` share. `values` collects the metrics of the step under way."""

    recipe: Recipe
    directory: RunDir
    console: Console
    cluster: Cluster
    tracker: Tracker
    metrics: MetricsLog
    watchdog: Watchdog
    checkpoints: CheckpointStore
    progress: Progress
    started: float
    step_started: float
    values: dict[str, float] = field(default_factory=dict)
    ledger_counts: dict[str, int] = field(default_factory=dict)
    stale_before: int = 0
    arrivals: int = 0
    waiting_for: str = "it was not asked yet"
    engines_started: dict[Any, str] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """A stage outside the loop: shown with its seconds."""
        self.watchdog.beat(name)
        with self.console.phase(name):
            yield
        self.watchdog.beat(f"{name}: done")

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """A stage of a step: its seconds become `time/<name>_s`."""
        self.watchdog.beat(name)
        start = time.monotonic()
        yield
        self.values[f"time/{name}_s"] = time.monotonic() - start

    def supervised_step(self, step: int, total: int, loss: float) -> None:
        self.watchdog.beat(f"supervised step {step}")
        self.console.supervised_step(step, total, loss)

    def observe_buffer(self, answer: TakeAnswer) -> None:
        """Finished groups are progress too: a slow environment is not a stall."""
        if answer.arrivals != self.arrivals:
            self.watchdog.beat(f"{answer.arrivals} groups finished")
        self.arrivals, self.waiting_for = answer.arrivals, answer.waiting_for
        self.count_tasks(answer.counts)

    def count_tasks(self, counts: Mapping[str, int]) -> None:
        """The ledger's counts; what was dropped as stale since the last step is a metric of this one."""
        stale = counts.get("reissued/stale", 0)
        self.values["rollout/dropped_stale"] = float(stale - self.stale_before)
        self.ledger_counts = dict(counts)

    def waiting(self) -> str:
        """Who waits for whom, in words, as far as the driver knows."""
        return f"{self.cluster.waiting_for()}. The buffer, when it last answered: {self.waiting_for}"

    def log(self, values: dict[str, float]) -> None:
        self.metrics.log(self.progress.step, values)
        self.tracker.log(self.progress.step, values)

    def begin_steps(self) -> None:
        """The clock of the first step starts here; what came before belongs to no step."""
        self.values, self.step_started = {}, time.monotonic()

    def end_step(self, groups: list[Group]) -> None:
        """Write the step down: trajectories, metrics, the console's line."""
        now = time.monotonic()
        seconds = now - self.step_started
        sampled = sum(s.trained_tokens for g in groups for t in g.trajectories for s in t.samples)
        self.values |= {
            "time/step_s": seconds,
            "perf/tokens_per_s": self.values.get("perf/trained_tokens", 0.0) / seconds,
            "perf/sampled_tokens_per_s": sampled / seconds,
            "memory/driver_rss_mb": psutil.Process().memory_info().rss / 2**20,
        }
        self.directory.write_groups(self.progress.step, groups)
        self.log(self.values)
        self.console.step(self.progress.step, self.values)
        self.values, self.step_started = {}, now
        self.stale_before = self.ledger_counts.get("reissued/stale", 0)

    @property
    def finished(self) -> bool:
        """Whether every step and the last evaluation are done."""
        return self.progress.step >= self.recipe.run.steps and bool(self.progress.eval_after)

    def saved_buffer(self) -> BufferState | None:
        """The buffer's state in the newest checkpoint."""
        saved = self.checkpoints.latest()
        return read_buffer(saved) if saved is not None else None

    def wall_s(self) -> float:
        """Seconds this run has taken, sessions before a resume included."""
        return time.monotonic() - self.started

    def summary(self, exit_reason: str) -> dict[str, Any]:
        saved = self.checkpoints.latest()
        return {
            "exit_reason": exit_reason,
            "steps": self.progress.step,
            "policy_version": self.progress.version,
            "wall_s": round(self.wall_s(), 1),
            "eval_success_before": self.progress.eval_before.get("eval/success"),
            "eval_success_after": self.progress.eval_after.get("eval/success"),
            "staleness_max": self.progress.staleness_max,
            "mismatch_logprob_abs_mean": _finite(self.progress.mismatch_mean),
            "trained_tokens": self.progress.trained_tokens,
            "tasks_issued": self.ledger_counts.get("issued", 0),
            "tasks_trained": self.ledger_counts.get("trained", 0),
            "tasks_dropped": self.ledger_counts.get("dropped", 0),
            "checkpoint": str(saved) if saved is not None else None,
            "hf_export": str(saved / "hf") if saved is not None else None,
        }


def drive(recipe: Recipe, run_id: str, train: Callable[[Session], None]) -> int:
    """Open a session, run `train` in it, close it, whatever happens. Returns the exit code."""
    console = Console(steps=recipe.run.steps)
    path = Path(recipe.run.dir or f"runs/{recipe.run.name}-{time.strftime('%Y%m%d-%H%M%S')}")
    try:
        directory = RunDir.open(path, resume=recipe.resume, run_id=run_id)
    except ValueError as error:
        console.error(str(error))
        return NOTHING_STARTED
    except OSError as error:
        console.error(f"run.dir={path} cannot be used: {error.strerror or error}; name another directory")
        return NOTHING_STARTED
    with directory, console:
        if directory.previous_run_id is not None:
            kill_run(directory.previous_run_id)
        session = _open(recipe, run_id, directory, console)
        ending = _run(session, train)
        summary = session.summary(ending.reason)
        try:
            session.metrics.close()
            atomic_write_json(directory.summary, summary)
        finally:
            session.cluster.close()
        session.tracker.finish(ending.code, summary, deadline_s=UPLOAD_S if ending.code == 0 else TRACKER_S)
        _report(session, ending, summary)
        if ending.code == NOTHING_STARTED:
            directory.discard()
    return ending.code


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a run ended: its exit code, and the reason in words."""

    code: int
    reason: str


def _run(session: Session, train: Callable[[Session], None]) -> Ending:
    """Start the processes and train. Whatever is raised in there becomes an `Ending`."""
    cluster = session.cluster

    def on_signal(signum: signal.Signals) -> None:
        cluster.stop.interrupt(signum.name, 128 + signum)

    try:
        install_signal_handlers(on_signal)
        with session.phase("starting Ray" if session.recipe.run.ray_address is None else "joining the Ray cluster"):
            cluster.connect()
        install_signal_handlers(on_signal)  # again: ray.init has put its own in their place
        cluster.stop.check()
        if missing := cluster.missing_hardware():
            return Ending(code=NOTHING_STARTED, reason="; ".join(missing))
        with session.watchdog, cluster.stop.interruptible():
            train(session)
        return Ending(code=0, reason="finished")
    except NoCluster as error:
        return Ending(code=NOTHING_STARTED, reason=str(error))
    except Stopped as stop:
        return Ending(code=stop.code, reason=str(stop))
    except (KeyboardInterrupt, SystemExit) as error:  # Ray's handlers, in the moment before ours are back
        signum = signal.SIGINT if isinstance(error, KeyboardInterrupt) else signal.SIGTERM
        return Ending(code=128 + signum, reason=signum.name)
    except (ProcessFailure, TooManyFailures, Diverged) as failure:
        return Ending(code=1, reason=str(failure))
    except Exception as error:
        log = session.directory.logs / "driver.log"
        log.write_text(traceback.format_exc(), encoding="utf-8")
        return Ending(code=1, reason=f"the driver failed: {type(error).__name__}: {error}; its traceback: {log}")


def _open(recipe: Recipe, run_id: str, directory: RunDir, console: Console) -> Session:
    """A fresh session, or that of the newest checkpoint."""
    save_resolved(recipe, directory.config)
    console.title(f"sluice · {recipe.run.name}")
    console.note(marked_yaml.dump(recipe.model_dump(mode="json")).rstrip())
    console.settings({"recipe": str(directory.config)} | {name: str(value) for name, value in derived(recipe).items()})
    checkpoints = CheckpointStore(directory.checkpoints, recipe.checkpoint.keep)
    saved = checkpoints.latest()
    progress = read_progress(saved) if saved is not None else Progress()
    if saved is not None:
        console.note(f"resuming after step {progress.step} from {saved}")
    cluster = Cluster(recipe, directory.logs, run_id)
    metrics = MetricsLog(directory.metrics)
    done = progress.step if saved is not None else -1  # without a checkpoint the first evaluation comes again too
    metrics.truncate_after(done)
    directory.discard_trajectories_after(done)
    counts = Ledger.from_state_dict(read_buffer(saved).ledger).counts() if saved is not None else {}
    tracker = Tracker(
        recipe.wandb, directory.path, name=recipe.run.name, recipe=recipe.model_dump(mode="json"), warn=console.warn
    )
    now = time.monotonic()
    session = Session(
        recipe=recipe,
        directory=directory,
        console=console,
        cluster=cluster,
        tracker=tracker,
        metrics=metrics,
        watchdog=Watchdog(
            stall_s=recipe.run.stall_s,
            on_stall=lambda stall: cluster.stop.request(stall.text, STALL_EXIT_CODE),
            logs_dir=directory.logs,
            waiting=lambda: session.waiting(),
        ),
        checkpoints=checkpoints,
        progress=progress,
        started=now - progress.wall_s,
        step_started=now,
        ledger_counts=counts,
        stale_before=counts.get("reissued/stale", 0),
    )
    return session


def _report(session: Session, ending: Ending, summary: Mapping[str, Any]) -> None:
    """Tell people how it ended; programs read summary.json."""
    if ending.code != 0:
        session.console.error(ending.reason)
        if ending.code != NOTHING_STARTED:
            session.console.note(f"summary: {session.directory.summary}")
        return
    session.console.summary(
        f"finished in {duration(summary['wall_s'])}",
        before=_labelled(session.progress.eval_before),
        after=_labelled(session.progress.eval_after),
        facts={
            "steps": str(summary["steps"]),
            "trained tokens": f"{summary['trained_tokens']:,}",
            "oldest trained token": f"{summary['staleness_max']} versions",
            "engine/trainer |Δlogprob|": f"{summary['mismatch_logprob_abs_mean'] or 0.0:.1e}",
        },
        places={
            "run directory": str(session.directory.path),
            "metrics": str(session.directory.metrics),
            "checkpoint": str(summary["checkpoint"]),
            "Hugging Face export": str(summary["hf_export"]),
        },
    )


def _labelled(success: Mapping[str, float]) -> dict[str, float]:
    """`eval/success/python` becomes "held-out success, python"."""
    return {
        name.replace("eval/success", "held-out success").replace("/", ", "): value
        for name, value in success.items()
        if name.startswith("eval/success")
    }


def _finite(value: float | None) -> float | None:
    """JSON has no other numbers."""
    return value if value is not None and math.isfinite(value) else None
