"""The driver: one recipe, one Ray cluster, one run directory.

    start ─ cold start ─ publish v0 ─ evaluate
    ┌─────────────────────────────────────────────────────────────────────┐
    │ take        waits for P finished groups; the rollout workers finish │
    │ learn       waits for the slowest trainer rank                      │
    │ publish     engines get version v+1: they stand still meanwhile,    │
    │             but not for an adapter                                  │
    │ open_gate   workers that wait for the staleness gate go on          │
    └─────────────────────────────────────────────────────────────────────┘
    checkpoint ─ evaluate

Rollouts go on during all of it except the push itself. With `placement: colocated` engines stand still from `take` to
the end of the push, while the trainer has the devices (rl.driver.turns).

The driver decides what happens next and writes it down; it moves no weights and runs no model, environment or reward.
`rl.driver.drive` opens and closes what is used here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rl.advantages.rows import train_rows
from rl.batch.plan import plan
from rl.config import Recipe
from rl.driver import specs
from rl.driver.drive import drive
from rl.driver.engines import Engines
from rl.driver.health import check_finite
from rl.driver.session import Session
from rl.driver.shown import show
from rl.driver.specs import policy_stage
from rl.driver.steps import (
    await_engines,
    begin_rollouts,
    checkpoint,
    due,
    evaluate,
    evaluate_beside,
    finish_evaluation,
    finish_read_back,
    forget_result,
    merge,
    open_gate,
    publish,
    seal,
    take,
    take_turns,
    to_trainer,
)
from rl.learner.schedule import learning_rate
from rl.observe.stepstats import learner_metrics, rollout_metrics, staleness
from rl.rundir.checkpoint import MODEL
from rl.rundir.runstate import rewrite_progress
from rl.sft.cold_start import cold_start
from rl.stages.stages import RL, SFT, remaining
from rollout.cards import Card


def run(recipe: Recipe, run_id: str) -> int:
    """Run the driver to its end and return the exit code (rl.driver.drive). The parent is rl.processes.guardian."""
    return drive(recipe, run_id, train)


def train(run: Session) -> None:
    """Start the processes and run every stage of the recipe that is not done yet."""
    if run.finished:
        run.console.note("this run is finished: there is nothing to resume. Raise run.steps to train on")
        return
    start_processes(run)
    model = base_model(run)
    for stage in remaining(run.recipe, run.progress):
        run.progress.stage, run.progress.model = stage, model
        model = LOOPS[stage](run, model)


def supervised(run: Session, model: str) -> str:
    """Run the stage `sft`: train on demonstrations. Its result is what reinforcement learning starts from."""
    with run.phase("preparing the starting model"):
        return cold_start(run.recipe, run.calls, run.cluster.trainers, run.supervised_step, run.console.warn)


def reinforcement(run: Session, model: str) -> str:
    """Run the stage `rl`: the loop that the diagram above shows."""
    recipe, progress = run.recipe, run.progress
    forget_result(run)
    prepare_policy(run, model)
    begin_rollouts(run)
    publish(run, verify=True)
    progress.eval_before = progress.eval_before or evaluate(run)
    finish_read_back(run)
    open_gate(run)
    run.step.begin()
    evaluate_beside(run)  # an earlier start may have been killed in it
    while progress.step < recipe.run.steps:
        cards = take(run)
        to_trainer(run)
        learn(run, cards)
        finish_evaluation(run)
        publish(run, verify=due(progress.step, recipe.weight_sync.verify_every))
        open_gate(run)
        run.end_step(cards)
        # After end_step: a checkpoint must never contain a step that the metrics lack.
        if due(progress.step, recipe.checkpoint.every) or progress.step == recipe.run.steps:
            checkpoint(run)
        evaluate_beside(run)
    return finish(run)


LOOPS: Mapping[str, Callable[[Session, str], str]] = {SFT: supervised, RL: reinforcement}
"""Each stage's loop. It takes the directory of the model to start from and returns that of the model it leaves."""


def base_model(run: Session) -> str:
    """The model to start the first remaining stage from. An adapter goes on with the base that it began with."""
    resumed = run.recipe.lora is not None and run.progress.model
    return resumed or run.recipe.model.path


def start_processes(run: Session) -> None:
    """Start every actor at once: they import and load side by side while the first stage goes on."""
    recipe, cluster, calls = run.recipe, run.cluster, run.calls
    cluster.start_trainers(specs.trainer_spec(recipe, run.folder, cluster.device, cluster.machines))
    settings = specs.engine_settings(recipe, cluster.device, cluster.machines)
    restarts, move = recipe.inference.restarts, recipe.inference.late > 0
    run.engines = Engines(cluster, settings, recipe.placement, restarts, run.engine_died, move=move)
    buffer = cluster.start_buffer(specs.buffer_spec(recipe), run.folder, run.saved_buffer())
    cluster.start_workers(specs.worker_spec(recipe, run.folder), run.engines.all, buffer)
    address = calls.ask(cluster.trainers[0], "address", what="starting the trainer")
    calls.background(calls.start(cluster.trainers, "join", *address))
    run.buffer_began = calls.background(calls.start([buffer], "told"))
    calls.watch([buffer], "watch")
    calls.watch(cluster.workers, "run")
    if recipe.placement == "colocated":
        run.turns = take_turns(run)


def prepare_policy(run: Session, model: str) -> None:
    """Load the policy into the trainers, and the newest checkpoint when the run is resumed; wait for the engines."""
    trainers, saved = run.cluster.trainers, run.checkpoints.latest()
    with run.phase("loading the policy into the trainer"):
        built = run.calls.ask_all(trainers, "build", model, policy_stage(run.recipe), what="loading the policy")
        if saved is not None:
            run.calls.ask_all(trainers, "load", str(saved / "trainer"), what=f"resuming from {saved}")
    if built[0] is not None:
        run.console.note(f"adapter: {built[0]}")
    await_engines(run)


def learn(run: Session, cards: list[Card]) -> None:
    """Compute advantages and weights, plan the micro-batches, take one optimizer step on every rank, which fetches its
    samples itself, and mark the groups as trained."""
    recipe, progress = run.recipe, run.progress
    mean_age, oldest = staleness(cards, progress.version)
    assert oldest <= recipe.buffer.max_staleness, f"a token is {oldest} versions old: the buffer's gate leaks"
    rows, counts = train_rows(cards, recipe.advantage, recipe.aggregation, keep_equal=recipe.kl is not None)
    trainer = recipe.trainer
    parts = plan(cards, rows, trainer.ranks, trainer.token_budget, share_prefixes=trainer.share_prefixes)
    lr = learning_rate(recipe.trainer.optimizer, progress.step, recipe.run.steps)
    what = f"training step {progress.step + 1}"
    with run.timed("train"):
        # Without rows (when rewards are equal within every group, say) the weights stay as they are.
        arguments = [(part, lr, progress.version) for part in parts]
        started = run.calls.start_each(run.cluster.trainers, "train_planned", arguments) if rows else {}
        answers = run.calls.wait(started, what)
    stats = answers[0] if answers else None
    if stats is not None:
        check_finite(what, stats, "trainer.optimizer")
    progress.add_step(stats, oldest)
    if stats is not None:
        run.step.values |= learner_metrics(stats, lr, progress.version)
        run.step.values["memory/trainer_rss_mb"] = max(answer["rss_mb"] for answer in answers)
    run.step.values |= rollout_metrics(cards) | counts | {"staleness/mean": mean_age, "staleness/max": float(oldest)}
    show(run, cards, rows)
    ids = [card.id for card in cards]
    run.step.count_tasks(run.calls.ask(run.buffer, "mark_trained", ids, progress.step, what="writing the ledger"))


def finish(run: Session) -> str:
    """Evaluate a last time, seal the trajectories for people, merge an adapter into its model, and add the result to
    the last checkpoint. Returns the directory of the trained model.

    The checkpoint was written before the evaluation, so a process that dies here costs no step.
    """
    run.progress.eval_after = evaluate(run)
    seal(run)
    saved = run.checkpoints.latest()
    assert saved is not None
    model = saved / MODEL if run.recipe.lora is None else merge(run)
    run.progress.wall_s = run.wall_s()
    rewrite_progress(saved, run.progress)
    return str(model)
