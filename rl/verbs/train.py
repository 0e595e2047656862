"""`./launch.sh RECIPE`: check that the recipe can run here, then start its driver below a guardian."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rl.exitcodes import DONE, NOTHING_STARTED
from rl.verbs.absent import is_file, no_such
from rl.verbs.usage import read_recipe, refuse

if TYPE_CHECKING:
    from rl.config import Recipe
    from rl.launch.slurm import Job


def train(argv: Sequence[str]) -> int:
    """Run a recipe from start to end. `argv` is the recipe's path and overrides."""
    if not is_file(argv[0]):
        return refuse(no_such(argv[0]))
    recipe = read_recipe(argv)
    if recipe is None:
        return NOTHING_STARTED
    if missing := lacking(recipe):
        return refuse("\n".join(missing))
    from rl.launch.slurm import Job, requeue, to_requeue

    job = Job.of(os.environ)
    recipe = of_job(recipe, job)
    from rl.processes.guardian import run_guarded
    from rl.processes.tree import new_run_id

    run_id = new_run_id()

    def driver() -> int:
        # Imported in the forked driver, so that the guardian stays small and libraries see the run's temp directory.
        from rollout.actors.process import settling_in

        with settling_in():
            from rl.run import run

        return run(recipe, run_id)

    code = run_guarded(driver, run_id=run_id)
    if code not in (DONE, NOTHING_STARTED) and job is not None and to_requeue(job):
        print(f"the SLURM job {job.id} is being preempted, so it is requeued", flush=True)
        try:
            requeue(job)
        except ValueError as error:
            print(f"error: it was not requeued, so submit it again: {error}", file=sys.stderr)
    return code


def of_job(recipe: Recipe, job: Job | None) -> Recipe:
    """The recipe, in a batch job of SLURM with a run directory that has the job's name, and when SLURM starts the job
    again with resume=auto, each unless the recipe says otherwise."""
    if job is None or not job.batch:
        return recipe
    if recipe.run.dir is None:
        run = recipe.run.model_copy(update={"dir": f"runs/{recipe.run.name}-job-{job.id}"})
        recipe = recipe.model_copy(update={"run": run})
    if job.restarts and "resume" not in recipe.model_fields_set:
        print(f"the SLURM job {job.id} was requeued, so resume=auto", flush=True)
        recipe = recipe.model_copy(update={"resume": "auto"})
    return recipe


def lacking(recipe: Recipe, *, trains: bool = True) -> list[str]:
    """Sentences that say why the recipe cannot run on this machine. Empty when it can. Nothing is started yet."""
    from rl.launch.others import other_machines
    from rl.recipe.check_sources import needs_sandbox
    from rl.recipe.hardware import missing_hardware, resolve_device
    from rl.recipe.machine import cpu_count, environment_error, gpu_names, sandbox_error

    found = []
    try:
        others = other_machines(recipe.run) if recipe.run.ray_address is None else None
    except ValueError as error:
        return [str(error)]
    # The devices of several machines are only known once connected to them; the driver asks the same question there.
    if recipe.run.ray_address is None and others is None:
        gpus = len(gpu_names())
        found += missing_hardware(recipe, cpus=cpu_count(), gpus=gpus, trains=trains)
        wrong = environment_error(resolve_device(recipe, gpus))
        found += [wrong] if wrong and not found else []
    isolated = recipe.sandbox.kind == "bubblewrap" and needs_sandbox(recipe)
    unsafe = sandbox_error(recipe.sandbox) if isolated else None
    return [*found, unsafe] if unsafe else found
