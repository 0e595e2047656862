"""The verbs behind launch.sh: parse, decide, hand over. Nothing heavy is imported before a verb needs it.

The help page is rl/help.txt, which launch.sh prints without starting Python. Exit codes: 0 done, 1 the run or a check
failed, 2 nothing was started (bad recipe or usage, missing hardware or tool). How a run ends else: rl.driver.session.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rl.paths import REPOSITORY

if TYPE_CHECKING:
    from rl.config import Recipe

NOTHING_STARTED = 2
HELP = ("-h", "--help")


def main(argv: Sequence[str]) -> int:
    """Run one verb and return the exit code. `argv` is what follows `./launch.sh`."""
    asked_of_a_verb = argv[1:2] and argv[1] in HELP and argv[0] != "test"  # pytest has a help page of its own
    if not argv or argv[0] in (*HELP, "help") or asked_of_a_verb:
        print(Path(__file__).with_name("help.txt").read_text(encoding="utf-8"), end="")
        return 0
    if argv[0] in _VERBS:
        return _VERBS[argv[0]](argv[1:])
    if not Path(argv[0]).is_file():
        return _refuse(f"no recipe file and no verb is called {argv[0]!r}; ./launch.sh --help lists the verbs")
    return _train(argv)


def _train(argv: Sequence[str]) -> int:
    recipe = _load(argv)
    if recipe is None:
        return NOTHING_STARTED
    if lacking := _lacking(recipe):
        return _refuse("\n".join(lacking))
    from rl.driver.guardian import run_guarded
    from rl.driver.processes import new_run_id

    run_id = new_run_id()

    def driver() -> int:
        from rl.run import (
            run,
        )  # here, in the fork: the guardian stays small, and libraries see the run's temp directory

        return run(recipe, run_id)

    return run_guarded(driver, run_id=run_id)


def _lacking(recipe: Recipe) -> list[str]:
    """What keeps the recipe from running on this machine, in words; asked before anything starts."""
    from rl.recipe.hardware import missing_hardware, resolve_device
    from rl.recipe.machine import cpu_count, environment_error, gpu_names, sandbox_error

    lacking = []
    # An existing cluster's devices are only known once connected to it; rl.run asks the same question there.
    if recipe.run.ray_address is None:
        gpus = len(gpu_names())
        lacking += missing_hardware(recipe, cpus=cpu_count(), gpus=gpus)
        wrong = environment_error(resolve_device(recipe, gpus))
        lacking += [wrong] if wrong and not lacking else []
    unsafe = None if recipe.sandbox.kind == "unsafe-none" else sandbox_error()
    return [*lacking, unsafe] if unsafe else lacking


def _plan(argv: Sequence[str]) -> int:
    if not argv:
        return _refuse("plan needs a recipe: ./launch.sh plan RECIPE [key=value …]")
    recipe = _load(argv)
    if recipe is None:
        return NOTHING_STARTED
    from rl.recipe.machine import cpu_count, gpu_names
    from rl.verbs.plan import describe

    print(describe(recipe, cpus=cpu_count(), gpus=len(gpu_names())))
    return 0


def _load(argv: Sequence[str]) -> Recipe | None:
    from rl.recipe.load import RecipeError, load_recipe

    try:
        return load_recipe(argv[0], argv[1:])
    except RecipeError as error:
        _refuse(str(error))
        return None


def _test(argv: Sequence[str]) -> int:
    os.chdir(REPOSITORY)
    # Replaces this process, so that signals and the exit code are pytest's own.
    os.execv(sys.executable, [sys.executable, "-m", "pytest", *argv])


def _check(argv: Sequence[str]) -> int:
    from rl.verbs.develop import check

    return check() if not argv else _refuse(f"check takes no arguments, got {list(argv)}")


def _lock(argv: Sequence[str]) -> int:
    from rl.verbs.develop import lock

    return lock() if not argv else _refuse(f"lock takes no arguments, got {list(argv)}")


def _doctor(argv: Sequence[str]) -> int:
    from rl.verbs.doctor import doctor

    return doctor() if not argv else _refuse(f"doctor takes no arguments, got {list(argv)}")


def _refuse(message: str) -> int:
    for line in message.splitlines():
        print(f"error: {line}", file=sys.stderr)
    return NOTHING_STARTED


_VERBS: dict[str, Callable[[Sequence[str]], int]] = {
    "plan": _plan,
    "test": _test,
    "check": _check,
    "lock": _lock,
    "doctor": _doctor,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
