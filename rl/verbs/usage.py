"""What verbs share: refusing, and reading a recipe that may have mistakes in it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rl.exitcodes import NOTHING_STARTED

if TYPE_CHECKING:
    from rl.config import Recipe


def refuse(message: str) -> int:
    """Print what is wrong, one line a problem, and return the exit code that says that nothing was started."""
    for line in message.splitlines():
        print(f"error: {line}", file=sys.stderr)
    return NOTHING_STARTED


def refuse_arguments(verb: str, argv: Sequence[str]) -> int | None:
    """For a verb that takes no arguments: the exit code of a refusal where it was given some."""
    return refuse(f"{verb} takes no arguments, got {list(argv)}") if argv else None


def read_recipe(argv: Sequence[str]) -> Recipe | None:
    """The recipe `argv[0]` with the overrides after it; None after a refusal."""
    from rl.recipe.load import RecipeError, load_recipe

    try:
        return load_recipe(argv[0], argv[1:])
    except RecipeError as error:
        refuse(str(error))
        return None
