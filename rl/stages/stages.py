"""The stages of a run: which ones a recipe asks for, their order, and which are behind.

A stage takes the path of a model directory and leaves one. Its loop is a function of its own (rl.run has the table); a
new stage is a name here, its loop, and its row there.
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
    """The stages that are not done: a checkpoint's stage is under way, and what comes before it is behind."""
    wanted = stages(recipe)
    return wanted[wanted.index(progress.stage) :] if progress.stage in wanted else wanted
