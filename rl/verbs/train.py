"""`./launch.sh RECIPE`: check that the recipe can run here, then start its driver below a guardian."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rl.exitcodes import NOTHING_STARTED
from rl.verbs.absent import is_file, no_such
from rl.verbs.usage import read_recipe, refuse

if TYPE_CHECKING:
    from rl.config import Recipe


def train(argv: Sequence[str]) -> int:
    """Run a recipe from start to end. `argv` is the recipe's path and overrides."""
    if not is_file(argv[0]):
        return refuse(no_such(argv[0]))
    recipe = read_recipe(argv)
    if recipe is None:
        return NOTHING_STARTED
    if missing := lacking(recipe):
        return refuse("\n".join(missing))
    from rl.processes.guardian import run_guarded
    from rl.processes.tree import new_run_id

    run_id = new_run_id()

    def driver() -> int:
        # Imported in the forked driver, so that the guardian stays small and libraries see the run's temp directory.
        from rl.run import run

        return run(recipe, run_id)

    return run_guarded(driver, run_id=run_id)


def lacking(recipe: Recipe, *, trains: bool = True) -> list[str]:
    """Sentences that say why the recipe cannot run on this machine. Empty when it can. Nothing is started yet."""
    from rl.launch.hostfile import read_hostfile
    from rl.recipe.check_sources import needs_sandbox
    from rl.recipe.hardware import missing_hardware, resolve_device
    from rl.recipe.machine import cpu_count, environment_error, gpu_names, sandbox_error

    found = []
    # An existing cluster's devices are only known once connected to it; the driver asks the same question there.
    if recipe.run.ray_address is None and recipe.run.hostfile is None:
        gpus = len(gpu_names())
        found += missing_hardware(recipe, cpus=cpu_count(), gpus=gpus, trains=trains)
        wrong = environment_error(resolve_device(recipe, gpus))
        found += [wrong] if wrong and not found else []
    if recipe.run.hostfile is not None:
        try:
            read_hostfile(Path(recipe.run.hostfile))
        except ValueError as error:
            found.append(str(error))
    isolated = recipe.sandbox.kind == "bubblewrap" and needs_sandbox(recipe)
    unsafe = sandbox_error(recipe.sandbox) if isolated else None
    return [*found, unsafe] if unsafe else found
