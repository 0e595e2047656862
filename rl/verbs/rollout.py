"""`rollout`: play episodes with a model and print them readably.

    ./launch.sh rollout RECIPE [n=3] [model=DIRECTORY] [key=value …]

They are the first held-out tasks, sampled as an evaluation samples them (`eval.*`).
"""

from __future__ import annotations

from collections.abc import Sequence

from rl.verbs.evaluate import run_without_trainer
from rl.verbs.usage import refuse

TASKS = 3


def rollout(argv: Sequence[str]) -> int:
    """Play. `argv` is the recipe's path and what follows it."""
    if not argv:
        return refuse("rollout needs a recipe: ./launch.sh rollout RECIPE [n=3] [key=value …]")
    counts = [argument.removeprefix("n=") for argument in argv[1:] if argument.startswith("n=")]
    count = counts[-1] if counts else str(TASKS)
    if not (count.isascii() and count.isdigit() and int(count)):
        return refuse(f"n={count:.50}: the number of tasks is a whole number from 1")
    others = [argument for argument in argv[1:] if not argument.startswith("n=")]
    return run_without_trainer([argv[0], f"tasks.eval_size={count}", *others], "rollout", shows=True)
