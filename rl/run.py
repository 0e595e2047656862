"""The driver: one recipe, one Ray cluster, one run directory.

    start ─ cold start ─ publish v0 ─ evaluate
    ┌─────────────────────────────────────────────────────────────────────┐
    │ take        waits for P finished groups; the rollout workers finish │
    │ learn       waits for the slowest trainer rank                      │
    │ publish     engines stand still until they hold version v+1         │
    │ open_gate   workers that wait for the staleness gate go on          │
    └─────────────────────────────────────────────────────────────────────┘
    checkpoint ─ evaluate

Rollouts go on during all of it except the push itself. The driver decides what happens next and writes it down; it
moves no weights and runs no model, environment or reward. `rl.driver.session` opens and closes what is used here.
"""

from __future__ import annotations

from rl.advantages.rows import train_rows
from rl.batch.micro_batch import denominator
from rl.batch.packing import pack
from rl.config import Recipe
from rl.driver.health import check_finite
from rl.driver.session import Session, drive
from rl.driver.specs import buffer_spec, worker_spec
from rl.driver.steps import checkpoint, due, evaluate, open_gate, publish, take
from rl.learner.schedule import learning_rate
from rl.observe.stepstats import learner_metrics, rollout_metrics, staleness
from rl.rundir.runstate import rewrite_progress
from rl.sft.cold_start import cold_start
from rollout.types import Group


def run(recipe: Recipe, run_id: str) -> int:
    """The driver's life, below its guardian (rl.driver.processes). Returns the exit code (rl.driver.session)."""
    return drive(recipe, run_id, train)


def train(run: Session) -> None:
    """The whole run, from its processes to its last evaluation."""
    if run.finished:
        run.console.note("this run is finished: there is nothing to resume. Raise run.steps to train on")
        return
    run.progress.eval_after = {}  # of an earlier, shorter run
    start_processes(run)
    with run.phase("preparing the starting model"):
        model = cold_start(run.recipe, run.cluster, run.supervised_step)
    prepare_policy(run, model)
    publish(run, verify=True)
    run.progress.eval_before = run.progress.eval_before or evaluate(run)
    open_gate(run)
    run.begin_steps()
    while run.progress.step < run.recipe.run.steps:
        groups = take(run)
        learn(run, groups)
        publish(run, verify=due(run, run.recipe.weight_sync.verify_every))
        open_gate(run)
        run.end_step(groups)
        # Written down first: a checkpoint must never know of a step that metrics and trajectories lack.
        if due(run, run.recipe.checkpoint.every) or run.progress.step == run.recipe.run.steps:
            checkpoint(run)
        if due(run, run.recipe.eval.every):
            evaluate(run)
    finish(run)


def start_processes(run: Session) -> None:
    """Start every actor at once: they import and load side by side while the cold start goes on."""
    recipe, cluster = run.recipe, run.cluster
    cluster.start_trainers()
    cluster.start_engines()
    cluster.start_buffer(buffer_spec(run), run.saved_buffer())
    cluster.start_workers(worker_spec(run), cluster.engines, cluster.buffer)
    address = cluster.wait(cluster.call(cluster.trainers[:1], "address"), "starting the trainer")[0]
    cluster.background(cluster.call(cluster.trainers, "join", *address))
    arguments = (
        recipe.model.path,
        recipe.model.dtype,
        recipe.inference,
        recipe.weight_sync,
        recipe.rollout.max_context,
        cluster.device,
        recipe.run.seed,
    )
    run.engines_started = cluster.background(cluster.call(cluster.engines, "start", *arguments))
    cluster.watch([cluster.buffer], "watch")
    cluster.watch(cluster.workers, "run")


def prepare_policy(run: Session, model: str) -> None:
    """Load the policy into the trainers, and the rest of the newest checkpoint when the run is resumed."""
    cluster, saved = run.cluster, run.checkpoints.latest()
    with run.phase("loading the policy into the trainer"):
        cluster.wait(cluster.call(cluster.trainers, "build", model, "rl"), "loading the policy")
        if saved is not None:
            cluster.wait(cluster.call(cluster.trainers, "load", str(saved / "trainer")), f"resuming from {saved}")
    with run.phase("waiting for the inference engines"):
        cluster.wait(run.engines_started, "starting the inference engines")
        cluster.watch(cluster.engines, "watch")


def learn(run: Session, groups: list[Group]) -> None:
    """Advantages, packing, one optimizer step on every rank, and the entry in the ledger."""
    recipe, cluster, progress = run.recipe, run.cluster, run.progress
    mean_age, oldest = staleness(groups, progress.version)
    assert oldest <= recipe.buffer.max_staleness, f"a token is {oldest} versions old: the buffer's gate leaks"
    rows, counts = train_rows(groups, recipe.algorithm)
    batches = pack(rows, recipe.trainer.ranks, recipe.trainer.token_budget)
    lr = learning_rate(recipe.trainer.optimizer, progress.step, recipe.run.steps)
    tokens = denominator(batches)
    with run.timed("train"):
        # A step whose groups all agree has nothing to learn; its weights stay as they are.
        arguments = [(rank_batches, "rl", float(tokens), lr, progress.version) for rank_batches in batches]
        calls = cluster.call_each(cluster.trainers, "train", arguments) if tokens else {}
        answers = cluster.wait(calls, f"training step {progress.step + 1}")
    stats = answers[0] if answers else None
    if stats is not None:
        check_finite(f"training step {progress.step + 1}", stats, "trainer.optimizer")
    progress.add_step(stats, oldest)
    if stats is not None:
        run.values |= learner_metrics(stats, lr, progress.version)
        run.values["memory/trainer_rss_mb"] = max(answer["rss_mb"] for answer in answers)
    run.values |= rollout_metrics(groups, recipe.eval.success_reward) | counts
    run.values |= {"staleness/mean": mean_age, "staleness/max": float(oldest)}
    ids = [group.id for group in groups]
    calls = cluster.call([cluster.buffer], "mark_trained", ids, progress.step)
    run.count_tasks(cluster.wait(calls, "writing the ledger")[0])


def finish(run: Session) -> None:
    """The last evaluation. The last checkpoint is written before it, so a process that dies here costs no step."""
    run.progress.eval_after = evaluate(run)
    run.progress.wall_s = run.wall_s()
    saved = run.checkpoints.latest()
    assert saved is not None
    rewrite_progress(saved, run.progress)
