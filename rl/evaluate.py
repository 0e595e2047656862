"""The driver of `./launch.sh eval`: engines that load a model's own weights, workers that play the held-out tasks, and
no trainer."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from rl.config import Recipe
from rl.driver import specs
from rl.driver.drive import drive
from rl.driver.engines import Engines
from rl.driver.session import Session
from rl.driver.steps import await_engines, evaluate
from rl.observe.console import Console
from rl.observe.evaluation import Evaluation
from rl.observe.transcript import transcript
from rollout.store import read


def run(recipe: Recipe, run_id: str, against: Evaluation | None, shows: bool) -> int:
    """Run the driver to its end and return the exit code (rl.driver.drive). `shows` says to print the episodes."""
    return drive(recipe, run_id, partial(evaluate_model, against=against, shows=shows), trains=False)


def evaluate_model(run: Session, against: Evaluation | None, shows: bool) -> None:
    """Evaluate the recipe's model, print a table, and compare it with another evaluation of the same tasks."""
    recipe, cluster, calls = run.recipe, run.cluster, run.calls
    settings = specs.engine_settings(recipe, cluster.device, cluster.machines)
    settings = [replace(own, load_format="auto", adapters=None) for own in settings]
    run.engines = Engines(cluster, settings, "split", 0, run.engine_died)
    cluster.start_workers(specs.worker_spec(recipe, run.folder), run.engines.all, None)
    await_engines(run)
    run.progress.eval_after = evaluate(run)
    calls.ask_all(cluster.workers, "seal", what="sealing the trajectories")
    if shows:
        for stored in read(run.directory.path):
            for trajectory in stored.group.trajectories:
                run.console.note(f"\n{transcript(stored.group, trajectory)}\n")
    tell(run.console, Evaluation.load(run.directory.evaluation(0)), against)


def tell(console: Console, found: Evaluation, against: Evaluation | None) -> None:
    """Print an evaluation as a table, and how it differs from another one."""
    console.table(found.table())
    if found.lost:
        console.warn(f"{found.lost} of {found.trajectories} trajectories were lost to infrastructure failures")
    if against is None:
        return
    compared = found.against(against)
    for name, comparison in compared.items():
        console.note(f"difference, {name}: {comparison}")
    if not compared:
        console.warn("the other evaluation has no task of these, or with other rows: nothing could be compared")
    elif left := found.only_in_one(against):
        console.warn(f"{left} tasks are in one of the two evaluations only, or their rows differ: they were left out")
