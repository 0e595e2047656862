"""Functions that verbs share: refuse with an exit code, and read a recipe that may have mistakes in it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rewards.errors import one_line
from rl.exitcodes import NOTHING_STARTED

LINE = 700
"""The most characters of a line, which may quote what somebody wrote."""

if TYPE_CHECKING:
    from rl.config import Recipe


def refuse(message: str) -> int:
    """Print what is wrong, one line per problem, and return the exit code that says that nothing was started."""
    for line in message.split("\n"):
        print(f"error: {one_line(line, LINE)}", file=sys.stderr)
    return NOTHING_STARTED


def refuse_arguments(verb: str, argv: Sequence[str]) -> int | None:
    """Refuse the arguments of a verb that takes none. Returns the exit code, or None when there are no arguments."""
    return refuse(f"{verb} takes no arguments, got {list(argv)}") if argv else None


def read_recipe(argv: Sequence[str]) -> Recipe | None:
    """Load the recipe `argv[0]` with the overrides after it. Prints its mistakes and returns None when it has some."""
    from rl.recipe.load import RecipeError, load_recipe

    try:
        return load_recipe(argv[0], argv[1:])
    except RecipeError as error:
        refuse(str(error))
        return None
