"""An estimate of the time that is left of a run, from what its steps, evaluations and checkpoints have taken so far.

It knows only what it was told since this process started: a resumed run may go on at another speed. The driver asks it
once a step (rl.driver.session).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from statistics import fmean

RECENT = 20
"""Steps whose mean duration is taken for that of the steps to come. A mean, not a median: if every fourth step has been
slow, every fourth of those to come will probably be slow, too."""


class Forecast:
    """Predicts the seconds from the end of a step to the end of the run.

    Args:
        steps: the number of the last step.
        every: by the name of a part of the run, the number of steps from one to the next; 0: only after the last step.
    """

    def __init__(self, steps: int, every: Mapping[str, int]) -> None:
        self._steps = steps
        self._every = every
        self._took: dict[str, float] = {}
        self._first: float | None = None
        self._recent: deque[float] = deque(maxlen=RECENT)

    def note(self, name: str, seconds: float) -> None:
        """Remember how long something took. Only the parts that `every` names are used."""
        self._took[name] = seconds

    def left_after(self, step: int, values: Mapping[str, float]) -> float:
        """Return the seconds that are left when step number `step` has just ended.

        `values` are the step's `time/*` metrics. Whatever is due after this step is still to come. A part that has not
        happened yet counts as 0.
        """
        self._add(values["time/step_s"] - sum(values.get(f"time/{name}_s", 0.0) for name in self._every))
        parts = sum(self._took.get(name, 0.0) * self._times(name, step) for name in self._every)
        return (self._steps - step) * self._typical() + parts

    def _add(self, seconds: float) -> None:
        """Add a step. The first one warms up and waits for the first rollouts, so it counts until there is another."""
        if self._first is None:
            self._first = seconds
        else:
            self._recent.append(seconds)

    def _typical(self) -> float:
        assert self._first is not None, "a step is added before"
        return fmean(self._recent) if self._recent else self._first

    def _times(self, name: str, step: int) -> int:
        """How often a part comes after step `step` and later ones. Every part comes after the last step."""
        every = self._every[name]
        return 1 + ((self._steps - 1) // every - (step - 1) // every if every else 0)
