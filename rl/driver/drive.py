"""The whole life of the driver process: open a session, train in it, and close it whatever happens.

Every way a run can end becomes an exit code, one message that names what failed and where its log is, and a
summary.json.

    0          finished
    1          the run failed
    2          nothing was started: the run directory or the hardware does not fit, or no Ray cluster answers
    75         stalled (rl.processes.watchdog)
    130 / 143  SIGINT / SIGTERM
"""

from __future__ import annotations

import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rewards.sandbox.sandbox import isolation
from rl.config import Recipe
from rl.driver.check_chat import UnfitChat, chat_report
from rl.driver.cluster import Cluster, Hardware, NoCluster
from rl.driver.health import Diverged
from rl.driver.layout import Unplaceable
from rl.driver.session import STALE, Session, StepRecord
from rl.driver.specs import wanted
from rl.driver.waiting import ProcessFailure
from rl.exitcodes import NOTHING_STARTED, STALLED
from rl.launch.others import unused_nodes
from rl.observe.alerts import Alerts
from rl.observe.console import Console, duration
from rl.observe.evaluation import ALL, Evaluation
from rl.observe.forecast import Forecast
from rl.observe.metrics_log import MetricsLog
from rl.observe.timeline import Timeline
from rl.observe.tracking.trackers import Trackers, tensorboard_tracker, wandb_tracker
from rl.processes.lastword import LastWord
from rl.processes.signals import install_signal_handlers, signal_handlers_kept
from rl.processes.stopping import Stopped
from rl.processes.tree import kill_run
from rl.processes.watchdog import Watchdog
from rl.recipe.changes import ChangedRecipe, check_resumable
from rl.recipe.check_sources import has_datasets, needs_sandbox, row_problems
from rl.recipe.checks import remarks
from rl.recipe.hardware import missing_hardware, resolve_device
from rl.recipe.resolved import derived, object_store_bytes, own_settings, save_resolved
from rl.rundir.atomic import atomic_write_json
from rl.rundir.checkpoint import CheckpointStore
from rl.rundir.directory import RunDir
from rl.rundir.progress import Progress
from rl.rundir.runstate import UnreadableState, read_buffer, read_state
from rollout.actors.process import relax_gc, settling_in
from rollout.buffer.buffer import BufferState, TooManyFailures
from rollout.buffer.ledger import counts_of
from rollout.store import eventlog
from rollout.tasks.stream import task_stream

UPLOAD_S = 120.0
"""How long wandb may take to send the rest of a finished run; metrics.jsonl has all of it."""
TRACKER_S = 10.0
"""The same for a run that did not finish: somebody may be waiting for it to exit."""
HELD_S = 20.0
"""How long a run waits for what other jobs of a shared cluster hold."""

TOLD = ("trajectories_per_step", "tokens_per_step_max", "gate_groups", "object_store_mb")
"""What is told at the start of the batch arithmetic. The resolved recipe has all of it."""


def drive(recipe: Recipe, run_id: str, train: Callable[[Session], None], *, trains: bool = True) -> int:
    """Open a session, run `train` in it, and close it whatever happens. Returns the exit code. `trains` says whether
    there are trainers."""
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
        try:
            with settling_in():
                session = _open(recipe, run_id, directory, console)
        except (UnreadableState, ChangedRecipe, UnfitChat) as error:
            console.error(str(error))
            if isinstance(error, UnfitChat):
                directory.discard()
            return NOTHING_STARTED
        try:
            with LastWord(lambda signum: _say_last(session, signum.name)):
                ending = _run(session, train, trains)
                summary = session.summary(ending.reason)
                session.metrics.close()
                atomic_write_json(directory.summary, summary)
        finally:
            session.cluster.close()
        # After the summary: who preempts a job gives it little time, and wandb may be gone already.
        if ending.code not in (0, NOTHING_STARTED):
            session.tracker.alert("the run stalled" if ending.code == STALLED else "the run ended", ending.reason)
        session.tracker.finish(ending.code, summary, deadline_s=UPLOAD_S if ending.code == 0 else TRACKER_S)
        _report(session, ending, summary, trains)
        if ending.code == NOTHING_STARTED:
            directory.discard()
    return ending.code


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a run ended: its exit code, and the reason in words."""

    code: int
    reason: str


def _run(session: Session, train: Callable[[Session], None], trains: bool) -> Ending:
    """Start or join Ray, and train. Every exception becomes an `Ending`."""
    cluster, recipe = session.cluster, session.recipe

    def on_signal(signum: signal.Signals) -> None:
        cluster.calls.stop.interrupt(signum.name, 128 + signum)

    try:
        install_signal_handlers(on_signal)
        if has_datasets(recipe):
            with cluster.calls.stop.interruptible():
                problems = _row_problems(session)
            if problems:
                return Ending(code=NOTHING_STARTED, reason="; ".join(problems))
        starting = "starting Ray" if recipe.run.ray_address is None else "joining the Ray cluster"
        with signal_handlers_kept(on_signal), session.phase(starting):
            hardware = cluster.connect(recipe.run, object_store_bytes(recipe))
        cluster.calls.stop.check()
        table = _placed(recipe, cluster, hardware, trains=trains)
        if cluster.machines > 1 or cluster.device == "cuda":
            session.console.settings(table)
        with session.watchdog, cluster.calls.stop.interruptible():
            relax_gc()
            train(session)
        return Ending(code=0, reason="finished")
    except (NoCluster, Unplaceable) as error:
        return Ending(code=NOTHING_STARTED, reason=str(error))
    except Stopped as stop:
        return Ending(code=stop.code, reason=str(stop))
    except (ProcessFailure, TooManyFailures, Diverged) as failure:
        return Ending(code=1, reason=str(failure))
    except (Exception, SystemExit) as error:
        log = session.directory.logs / "driver.log"
        log.write_text(traceback.format_exc(), encoding="utf-8")
        return Ending(code=1, reason=f"the driver failed: {type(error).__name__}: {error}; its traceback: {log}")


def _say_last(session: Session, reason: str) -> None:
    """Write and tell how a run ends whose main thread was asked to stop and has not."""
    atomic_write_json(session.directory.summary, session.summary(reason))
    print(f"error: {reason}; the driver did not stop by itself", file=sys.stderr)
    print(f"summary: {session.directory.summary}", file=sys.stderr, flush=True)


def _placed(recipe: Recipe, cluster: Cluster, hardware: Hardware, *, trains: bool) -> dict[str, str]:
    """Give every actor its machine. Returns by the address of each machine its actors.

    What other jobs of a shared cluster hold may be the last of a run that has ended: a little later there may be room.

    Raises:
        Unplaceable: the machines cannot hold them.
    """
    end = time.monotonic() + HELD_S
    while True:
        try:
            if missing := missing_hardware(recipe, **asdict(hardware), trains=trains):
                raise Unplaceable("; ".join(missing))
            device = resolve_device(recipe, hardware.all_gpus)
            return cluster.lay_out(wanted(recipe, device, cluster.machines, trains=trains))
        except Unplaceable:
            if not hardware.held or time.monotonic() > end:
                raise
        cluster.calls.stop.check()
        time.sleep(1.0)
        hardware = cluster.look()


def _open(recipe: Recipe, run_id: str, directory: RunDir, console: Console) -> Session:
    """Open a session that starts afresh, or one that continues from the newest checkpoint."""
    checkpoints = CheckpointStore(directory.checkpoints, recipe.checkpoint.keep)
    saved = checkpoints.latest()
    progress, buffer = read_state(saved) if saved is not None else (Progress(), None)
    _check_ledger(directory, buffer)
    _check_base(recipe, progress)
    changes = [] if saved is None else check_resumable(directory.config, recipe)
    save_resolved(recipe, directory.config)
    console.title(f"sluice · {recipe.run.name}")
    console.sections(own_settings(recipe))
    told = {name: str(value) for name, value in derived(recipe).items() if name in TOLD}
    console.settings(told | {"every setting": str(directory.config)})
    if needs_sandbox(recipe):
        console.settings({"sandbox": isolation(recipe.sandbox)})
    if saved is not None:
        console.note(f"resuming after step {progress.step} from {saved}")
    for change in changes:
        console.note(f"changed: {change}")
    report = chat_report(recipe)
    if report.problems:
        raise UnfitChat("\n".join(report.problems))
    if unused := unused_nodes(recipe.run):
        console.note(unused)
    for remark in (*remarks(recipe), *report.warnings):
        console.warn(remark)
    cluster = Cluster(directory.logs, run_id)
    metrics = MetricsLog(directory.metrics)
    done = progress.step if saved is not None else -1  # without a checkpoint the first evaluation comes again too
    metrics.truncate_after(done)
    directory.forget_evaluations(after=done)
    counts = counts_of(buffer.ledger) if buffer is not None else {}
    tracker = _trackers(recipe, directory, console, first_step=done + 1)
    now = time.monotonic()
    session = Session(
        recipe=recipe,
        run_id=run_id,
        directory=directory,
        console=console,
        cluster=cluster,
        tracker=tracker,
        metrics=metrics,
        timeline=Timeline(directory.timeline),
        watchdog=Watchdog(
            stall_s=recipe.run.stall_s,
            on_stall=lambda stall: cluster.calls.stop.request(stall.text, STALLED),
            on_late=lambda stall: _say_last(session, stall.text),
            logs_dir=directory.logs,
            waiting=lambda: session.waiting(),
        ),
        checkpoints=checkpoints,
        progress=progress,
        started=now - progress.wall_s,
        step=StepRecord(started=now, ledger_counts=counts, stale_before=counts.get(STALE, 0)),
        alerts=Alerts(recipe.alerts, lambda title, text: session.alert(title, text)),
        forecast=Forecast(recipe.run.steps, {"checkpoint": recipe.checkpoint.every, "eval": recipe.eval.every}),
    )
    session.timeline.opened()
    return session


def _trackers(recipe: Recipe, directory: RunDir, console: Console, *, first_step: int) -> Trackers:
    """What shows the run elsewhere. `first_step` is the first one that this start may log."""
    shown = recipe.model_dump(mode="json")
    wandb = wandb_tracker(recipe.wandb, directory.path, name=recipe.run.name, recipe=shown, warn=console.warn)
    board = tensorboard_tracker(
        recipe.tensorboard, directory.path, recipe=shown, first_step=first_step, warn=console.warn
    )
    return Trackers([*wandb, *board])


def _row_problems(session: Session) -> list[str]:
    """What is wrong with the rows of folders and of the hub, and with those that a resumed run goes on with.

    Here and not before the driver is forked: `datasets` starts threads, and may download for a long time.
    """
    recipe = session.recipe
    with session.phase("reading the datasets"):
        problems = [problem.text for problem in row_problems(recipe, local=False)]
        saved = session.checkpoints.latest()
        if problems or saved is None or not (meant := read_buffer(saved).tasks):
            return problems
        if task_stream(recipe.tasks, "train", recipe.run.seed).digest == meant:
            return []
    names = " or ".join(source.dataset.path for source in recipe.tasks.sources if source.dataset is not None)
    return [
        f"the rows of {names} are not those that this run began with, so that its ledger would mean other tasks: "
        "resume with the former rows, or name another run.dir"
    ]


def _check_ledger(directory: RunDir, buffer: BufferState | None) -> None:
    """Raise UnreadableState if the ledger's log is damaged, or lacks what the checkpoint refers to."""
    try:
        eventlog.check(directory.ledger, None if buffer is None else buffer.position)
    except (OSError, ValueError) as error:
        raise UnreadableState(
            f"the ledger's log cannot be gone on from ({error}): put it back as it was, or name another run.dir"
        ) from error


def _check_base(recipe: Recipe, progress: Progress) -> None:
    """Raise UnreadableState if a saved adapter's base model is gone."""
    if recipe.lora is not None and Path(progress.model).is_absolute() and not Path(progress.model).is_dir():
        raise UnreadableState(
            f"the base model of this run's adapter, {progress.model}, is gone: put it back, or name another run.dir"
        )


def _report(session: Session, ending: Ending, summary: Mapping[str, Any], trains: bool) -> None:
    """Print how the run ended. (Programs should read summary.json.)"""
    if ending.code != 0:
        session.console.error(ending.reason)
        if ending.code != NOTHING_STARTED:
            session.console.note(f"summary: {session.directory.summary}")
        return
    if not trains:
        session.console.settings({"evaluation": str(session.directory.evaluation(0))})
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
            **_gain(session),
        },
        places={
            "run directory": str(session.directory.path),
            "metrics": str(session.directory.metrics),
            "checkpoint": str(summary["checkpoint"]),
            **({"adapter": str(summary["adapter"])} if summary["adapter"] else {}),
            "Hugging Face export": str(summary["hf_export"]),
            "look further": f"./launch.sh report {session.directory.path}",
            "see it play": f"./launch.sh rollout {session.directory.config} model={summary['hf_export']}",
        },
    )


def _gain(session: Session) -> dict[str, str]:
    """How sure the difference between the first and the last evaluation is."""
    first, last = session.directory.evaluation(0), session.directory.evaluation(session.progress.step)
    try:
        found = Evaluation.load(last).against(Evaluation.load(first))
    except ValueError:  # of an earlier version of Sluice, or deleted
        return {}
    return {f"after − before, {name}" if name != ALL else "after − before": str(found[name]) for name in found}


def _labelled(success: Mapping[str, float]) -> dict[str, float]:
    """`eval/success/python` becomes "held-out success, python"."""
    return {
        name.replace("eval/success", "held-out success").replace("/", ", "): value
        for name, value in success.items()
        if name == "eval/success" or name.startswith("eval/success/")
    }
