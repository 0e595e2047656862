"""Steps that any stage which rolls out shares: publish weights, move the gate, take groups, evaluate, checkpoint."""

from __future__ import annotations

from rl.driver.cluster import ProcessFailure
from rl.driver.health import check_eval_failures
from rl.driver.session import Session
from rl.observe.stepstats import eval_metrics
from rl.rundir.runstate import write_state
from rl.weights.publish import PublishError
from rollout.tasks.stream import task_stream
from rollout.types import Group

TAKE_POLL_S = 5.0
"""How long the buffer holds one `take` before it answers with how far it is."""


def publish(run: Session, *, verify: bool) -> None:
    """Push the trainers' weights to every engine as the current version. A push is idempotent: it is tried twice."""
    cluster, version = run.cluster, run.progress.version
    with run.timed("weight_sync"):
        try:
            calls = cluster.call(cluster.trainers, "publish", version, cluster.engines, verify)
            cluster.wait(calls, f"publishing weights version {version}")
        except ProcessFailure as error:
            if not isinstance(error.cause, PublishError):
                raise
            run.console.warn(f"{error}; trying once more")
            calls = cluster.call(cluster.trainers, "publish", version, cluster.engines, verify)
            cluster.wait(calls, f"publishing weights version {version} again")


def open_gate(run: Session) -> None:
    """Tell the buffer which version the engines hold: it may admit tasks for it now."""
    run.cluster.wait(run.cluster.call([run.cluster.buffer], "published", run.progress.version), "moving the gate")


def take(run: Session) -> list[Group]:
    """The next groups to learn from. Arrivals count as progress for the watchdog while too few are there."""
    cluster = run.cluster
    with run.timed("wait_rollouts"):
        while True:
            answer = cluster.wait(cluster.call([cluster.buffer], "take", run.progress.version, TAKE_POLL_S), "taking")[
                0
            ]
            run.observe_buffer(answer)
            if answer.groups is not None:
                return list(answer.groups)


def evaluate(run: Session) -> dict[str, float]:
    """Held-out success of the version that the engines hold now (rl.observe.stepstats.eval_metrics).

    Raises:
        TooManyFailures: infrastructure failures left too little to judge.
    """
    recipe, cluster = run.recipe, run.cluster
    tasks = task_stream(recipe.tasks, "eval").once()
    # By position: tasks of a dataset may share an id, and requests must not.
    arguments = [(f"eval-{run.progress.version}-{position}", task) for position, task in enumerate(tasks)]
    workers = [cluster.workers[position % len(cluster.workers)] for position in range(len(tasks))]
    with run.phase(f"evaluating {len(tasks)} held-out tasks"):
        calls = cluster.call_each(workers, "evaluate", arguments)
        groups = cluster.wait(calls, "evaluation", lambda: run.watchdog.beat("a held-out task"))
    check_eval_failures(groups, recipe.rollout.failure_share_limit)
    run.directory.write_groups(run.progress.step, groups, split="eval")
    values = eval_metrics(groups, recipe.eval.success_reward)
    run.log(values)
    return values


def due(run: Session, every: int) -> bool:
    """Whether something that happens every so many steps (0: never) happens after this one; not after the last."""
    step = run.progress.step
    return every > 0 and step % every == 0 and step < run.recipe.run.steps


def checkpoint(run: Session) -> None:
    """Trainer state, Hugging Face export, buffer and progress: visible together or not at all."""
    cluster, step = run.cluster, run.progress.step
    with run.timed("checkpoint"):
        folder = run.checkpoints.begin(step)
        cluster.wait(cluster.call(cluster.trainers, "save", str(folder / "trainer")), "saving the trainer")
        cluster.wait(cluster.call(cluster.trainers, "export", str(folder / "hf")), "exporting the model")
        buffer = cluster.wait(cluster.call([cluster.buffer], "state"), "saving the buffer")[0]
        run.progress.wall_s = run.wall_s()
        write_state(folder, run.progress, buffer)
        run.checkpoints.publish(step)
