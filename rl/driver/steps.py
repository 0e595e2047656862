"""Operations of every stage with rollouts: publish weights, open the gate, take groups, evaluate, checkpoint, take
turns."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ray.actor import ActorHandle

from rl.driver.health import check_eval_failures
from rl.driver.session import Evaluating, ReadingBack, Session
from rl.driver.turns import Colocated
from rl.driver.waiting import DEATH_S, ProcessFailure
from rl.observe.evaluation import Evaluation
from rl.recipe.adapters import pushes_adapter
from rl.rundir.best import keep_best
from rl.rundir.checkpoint import ADAPTER, MODEL
from rl.rundir.runstate import read_buffer, write_state
from rl.weights.publish import PublishError, PublishReport
from rl.weights.read_back import ReadBackReport
from rollout.cards import Card
from rollout.store import segments, trained
from rollout.store.retention import needed, trim
from rollout.tasks.stream import EVAL_SEED, task_stream
from rollout.types import Task

TAKE_POLL_S = 5.0
"""How long the buffer waits in one `take` for enough groups before it answers with its state alone."""


def take_turns(run: Session) -> Colocated:
    """Give the first turn to the trainer: the engines start on the empty devices, and fall asleep."""
    calls, cluster = run.calls, run.cluster

    def engines(method: str, *args: Any) -> Any:
        what = f"taking turns: the engines' {_part(method, args)}"
        if args == ("kv_cache",):
            what += " (where there is no room for it, lower inference.engine_args.gpu_memory_utilization)"
        return calls.ask_all(list(run.engines.all.values()), "call", method, *args, what=what)

    def trainers(method: str, *args: Any) -> Any:
        what = f"taking turns: the trainer's {_part(method, args)}"
        return calls.ask_all(cluster.trainers, method, *args, what=what)

    if cluster.device == "cpu":
        run.console.note("placement=colocated on CPU: turns are taken in their order, and no memory is freed by them")
    await_engines(run)
    turns = Colocated(engines, trainers, adapters=pushes_adapter(run.recipe))
    turns.train()
    return turns


def _part(method: str, args: Sequence[Any]) -> str:
    return f"{method}({', '.join(map(str, args))})"


def await_engines(run: Session) -> None:
    """Wait until every engine has started."""
    if not run.engines.started:
        with run.phase("waiting for the inference engines"):
            run.engines.wait()


def begin_rollouts(run: Session) -> None:
    """Wait until the buffer has sorted what earlier starts left, and say what it found."""
    for line in run.calls.wait(run.buffer_began, "starting the buffer")[0]:
        run.console.note(line)
    run.settled_segments = set(segments.paths(run.directory.trajectories))
    run.first_trained = max(trained.paths(run.directory.trained), default=0) + 1


def seal(run: Session) -> None:
    """Finish the files of trajectories and trained tokens, so that other programs can open them."""
    run.calls.ask_all(run.cluster.workers, "seal", what="sealing the trajectories")
    run.calls.ask_all(run.cluster.trainers, "seal", what="finishing the record of trained tokens")


def publish(run: Session, *, verify: bool) -> None:
    """Push the trainers' weights to every engine that serves, as the current version. Where none does, wait for one
    that is starting again."""
    with run.timed("turns", run.progress.step):
        run.turns.push()
    with run.timed("weight_sync", run.progress.step) as waited_for:
        report = _push(run, run.engines.serving, verify)
        while report is None:
            run.calls.wait_until(run.engines.any_ready, "waiting for an engine that is started")
            report = admit_engines(run)
        if run.recipe.placement == "colocated":  # engines are about to have another turn
            finish_read_back(run)
        waited_for.append(f"{report.bytes:,} bytes; engines stood still for {report.paused_s:.3f} s")
    run.step.values["policy/verified_engines"] = float(report.verified)
    run.step.values["policy/engines_restarted"] = float(run.engines.restarted)
    run.step.values["policy/engines_serving"] = float(len(run.engines.serving))
    run.step.values["staleness/superseded"] = float(report.superseded)
    with run.timed("turns", run.progress.step):
        left_mb = run.turns.roll()
    if left_mb is not None:
        run.step.values["memory/trainer_left_mb"] = left_mb


def admit_engines(run: Session) -> PublishReport | None:
    """Give engines that were started in the run the current version, each alone, and let workers use them. The trainer
    must hold that version. Returns the report of the last such push."""
    run.engines.look_for_machines()
    report = None
    for number in run.engines.ready:
        if number not in run.engines.ready:  # it has died since
            continue
        handle = run.engines.all[number]
        if pushed := _push(run, {number: handle}, verify=True):
            report = pushed
            finish_read_back(run)
            run.calls.ask_all(run.cluster.workers, "use_engine", number, handle, what="admitting an engine")
            run.engines.admit(number, handle)
            run.watchdog.beat(f"engine-{number} serves")
            run.console.note(f"engine-{number} serves from now on, with version {run.progress.version}")
    return report


def _push(run: Session, engines: Mapping[int, ActorHandle], verify: bool) -> PublishReport | None:
    """Push the current version to these engines. A push is idempotent, so one that failed is repeated: without the
    engines that died in it, or once if none did. Returns None if none is left."""
    finish_read_back(run)
    engines, again = dict(engines), ""
    while engines:
        arguments, what = (run.progress.version, engines, verify), f"publishing weights version {run.progress.version}"
        try:
            report: PublishReport = run.calls.ask_all(run.cluster.trainers, "publish", *arguments, what=what + again)[0]
            run.reading_back = ReadingBack(step=run.progress.step, engines=engines) if report.readable else None
            return report
        except ProcessFailure as error:
            left = {number: handle for number, handle in engines.items() if run.engines.holds(number, handle)}
            if not isinstance(error.cause, PublishError) or (again and left == engines):
                raise
            if left:  # else its death was told
                run.console.warn(f"{str(error).splitlines()[0]} Trying once more.")
        engines, again = left, " again"
    return None


def finish_read_back(run: Session) -> None:
    """Wait until engines have compared the last verified push with what they compute with, and log it under its step.
    An engine that has died since compares nothing any more.

    Raises:
        ProcessFailure: an engine computes with something else, or failed and lives.
    """
    if run.reading_back is None:
        return
    begun, run.reading_back = run.reading_back, None

    def alive(numbers: Iterable[int]) -> list[int]:
        return [number for number in numbers if run.engines.holds(number, begun.engines[number])]

    asked, what = alive(begun.engines), "reading weights back"
    report: ReadBackReport = run.calls.ask(run.cluster.trainers[0], "finish_read_back", asked, what=what)
    end = time.monotonic() + DEATH_S
    run.calls.wait_until(lambda: not alive(report.failed) or time.monotonic() > end, what)
    if failed := alive(report.failed):
        raise ProcessFailure("; ".join(report.failed[number] for number in failed))
    if len(asked) > len(report.failed):
        run.log({"policy/read_back_tensors": float(report.read)}, begun.step)


def to_trainer(run: Session) -> None:
    """Let the trainer have the devices that it shares with engines."""
    with run.timed("turns"):
        run.turns.train()


def open_gate(run: Session) -> None:
    """Tell the buffer which version the engines hold, so that it admits tasks for that version."""
    run.calls.ask(run.buffer, "published", run.progress.version, what="moving the gate")


def take(run: Session) -> list[Card]:
    """Wait for the next groups to learn from, and return their cards. Groups that finish meanwhile count as progress
    for the watchdog."""
    with run.timed("wait_rollouts") as waited_for:
        while True:
            answer = run.calls.ask(run.buffer, "take", run.progress.version, TAKE_POLL_S, what="taking")
            run.observe_buffer(answer)
            admit_engines(run)
            if answer.cards is not None:
                return list(answer.cards)
            waited_for[:] = [answer.waiting_for]


def begin_evaluation(run: Session) -> None:
    """Begin to evaluate the version that the engines hold now, beside the rollouts and the next step of the trainer.
    `finish_evaluation` has to come before the next push, so that the evaluation is of one version."""
    cluster, version = run.cluster, run.progress.version
    tasks = run.held_out = run.held_out or _held_out(run)
    # Requests are named by position, because tasks of a dataset may share an id, and requests must not.
    arguments = [(f"eval-{version}-{position}", task) for position, task in enumerate(tasks)]
    workers = [cluster.workers[position % len(cluster.workers)] for position in range(len(tasks))]
    started = run.calls.background(run.calls.start_each(workers, "evaluate", arguments))
    run.evaluating = Evaluating(step=run.progress.step, version=version, started=started)


def evaluate_beside(run: Session) -> None:
    """Begin the evaluation that is due after the last finished step, unless an earlier start of the run has done it.
    The last step's is `finish`'s."""
    step = run.progress.step
    wanted = 0 < step < run.recipe.run.steps and due(step, run.recipe.eval.every)
    if not wanted or run.directory.evaluation(step).exists():
        return
    begin_evaluation(run)
    if run.recipe.placement == "colocated":  # the trainer needs the engines' devices
        finish_evaluation(run)


def finish_evaluation(run: Session) -> dict[str, float]:
    """Wait for the evaluation that was begun, log it under the step that it is of, and keep that step's model if it is
    the best so far. Returns the metrics; empty where none was begun.

    Raises:
        TooManyFailures: infrastructure failures left too few trajectories to judge.
    """
    if run.evaluating is None:
        return {}
    begun, run.evaluating = run.evaluating, None

    def beat() -> None:
        run.watchdog.beat("a held-out task")

    with run.phase(f"evaluating {len(begun.started)} held-out tasks", timed=True), run.timed("eval", begun.step):
        cards = run.calls.wait(begun.started, "evaluation", beat, partial(_keep_serving, run, begun.version))
    check_eval_failures(cards, run.recipe.rollout.failure_share_limit)
    evaluation = Evaluation.of_cards(cards, run.held_out, begun.version)
    evaluation.save(run.directory.evaluation(begun.step))
    values = evaluation.metrics()
    run.log(values, begun.step)
    if "eval/success" in values:
        saved = run.checkpoints.of_step(begun.step)
        keep_best(run.directory.best, saved, begun.step, values["eval/success"])
    return values


def _keep_serving(run: Session, version: int) -> None:
    """Let engines that were started again take part in the evaluation of a version.

    Raises:
        ProcessFailure: none serves, and the trainer has gone on from the version.
    """
    if run.progress.version == version:
        admit_engines(run)
    elif not run.engines.serving:
        raise ProcessFailure(
            f"the last engine died while version {version} was evaluated, and the trainer holds version "
            f"{run.progress.version} already: start again with resume=auto"
        )


def evaluate(run: Session) -> dict[str, float]:
    """Evaluate the version that the engines hold now, and return the metrics, as `finish_evaluation` does."""
    begin_evaluation(run)
    return finish_evaluation(run)


def _held_out(run: Session) -> list[Task]:
    stream = task_stream(run.recipe.tasks, "eval", EVAL_SEED)
    for left_out in stream.skipped:
        run.console.warn(f"evaluation: {left_out}")
    return stream.once()


def due(step: int, every: int) -> bool:
    """Whether something that happens every `every` steps (0: never) is due after step number `step`."""
    return every > 0 and step % every == 0


def checkpoint(run: Session) -> None:
    """Write trainer state, the model (or the adapter alone), buffer and progress, which become visible together or not
    at all; then delete what may go."""
    trainers, step = run.cluster.trainers, run.progress.step
    with run.timed("checkpoint", step), run.turns.training():
        finish_read_back(run)
        folder = run.checkpoints.begin(step)
        run.calls.ask_all(trainers, "save", str(folder / "trainer"), what="saving the trainer")
        if run.recipe.lora is None:
            run.calls.ask_all(trainers, "export", str(folder / MODEL), what="exporting the model")
        else:
            run.calls.ask_all(trainers, "export_adapter", str(folder / ADAPTER), what="exporting the adapter")
        buffer = run.calls.ask(run.buffer, "state", what="saving the buffer")
        run.progress.wall_s = run.wall_s()
        write_state(folder, run.progress, buffer)
        run.checkpoints.publish(step)
        _trim_trajectories(run)


def forget_result(run: Session) -> None:
    """Forget the last evaluation and the merged model of a run that was finished and now goes on."""
    run.progress.eval_after = {}
    shutil.rmtree(run.directory.merged, ignore_errors=True)


def merge(run: Session) -> Path:
    """Write the model with the adapter merged into it."""
    target = run.directory.merged
    unfinished = target.with_name(f".{target.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    with run.phase("merging the adapter into the model"), run.turns.training():
        run.calls.ask_all(run.cluster.trainers, "export", str(unfinished), what="exporting the merged model")
    unfinished.rename(target)
    return target


def _trim_trajectories(run: Session) -> None:
    """Delete the oldest trajectories above `trajectories.keep_gb`, except what a kept checkpoint may go on from."""
    keep_gb = run.recipe.trajectories.keep_gb
    if keep_gb is None:
        return
    kept = [read_buffer(folder) for folder in run.checkpoints.all()]
    held = {issue["address"]["segment"] for state in kept for issue in state.ledger["open"] if issue["address"]}
    stay = needed(run.directory.ledger, min(state.position for state in kept), held)
    folder = run.directory.trajectories
    sealed = segments.sealed(folder)
    deleted = trim(folder, keep_gb * 1e9, stay, run.settled_segments)
    run.settled_segments |= sealed
    if deleted:
        trained.trim(run.directory.trained, segments.paths(folder).keys(), run.first_trained)
        run.console.note(f"deleted {len(deleted)} files of trajectories: trajectories.keep_gb is {keep_gb:g}")
