"""The stages of a run: which ones a recipe asks for, their order, and which of them are done.

A stage starts from a model directory and leaves one. Its loop is a function in rl.run, which has the table of loops. A
new stage needs a name and its condition here, and its loop there.
"""

from __future__ import annotations

from rl.config import Recipe
from rl.rundir.progress import Progress

SFT, RL = "sft", "rl"
ORDER = (SFT, RL)


def stages(recipe: Recipe) -> list[str]:
    """The stages that a recipe asks for, in order."""
    wanted = {SFT: recipe.sft is not None, RL: True}
    return [stage for stage in ORDER if wanted[stage]]


def remaining(recipe: Recipe, progress: Progress) -> list[str]:
    """The stages that are not done. `progress` names the stage under way; the stages before it are done."""
    wanted = stages(recipe)
    return wanted[wanted.index(progress.stage) :] if progress.stage in wanted else wanted
