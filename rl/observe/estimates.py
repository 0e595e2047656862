"""Estimates from an evaluation, each with an interval of 95 %: success, pass@k, maj@k, the difference of two models.

Tasks are drawn, and the samples of a task belong together. So intervals come from drawing tasks again (bootstrap), and
two models are compared task by task. Every number says how many tasks it is about.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

DRAWS = 4000
"""Times that tasks are drawn again for an interval, and that signs are drawn for a test."""
EXACT = 12
"""Up to so many tasks that differ, a test goes through all signs."""
CONFIDENCE = 0.95
POWER = 0.8
"""The share of experiments in which a difference of the size that `Comparison.visible` names would be seen."""
_SEED = 0
Values = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Answered:
    """One sample of a task: whether it is a success, and a key of its answer, equal for equal answers; None: none."""

    success: bool
    answer: str | None = None


Samples = Mapping[str, Sequence[Answered]]
"""The samples of each task, by the task's id. Infrastructure failures are not among them."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over tasks, and the interval that holds its expectation in 95 of 100 cases."""

    value: float
    low: float
    high: float
    tasks: int

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f}–{self.high:.3f})"


@dataclass(frozen=True, slots=True)
class Comparison:
    """How two models differ on the same tasks: the second less the first.

    `p` is the probability of so large a difference between models that do not differ (a paired test by random signs).
    `visible` is the smallest true difference that would be seen at 5 % in about 80 of 100 such experiments.
    """

    difference: Estimate
    p: float
    visible: float

    def __str__(self) -> str:
        d = self.difference
        return (
            f"{d.value:+.3f} ({d.low:+.3f} to {d.high:+.3f}; p = {self.p:.3g}, {d.tasks} tasks; "
            f"a difference of {self.visible:.3f} would be seen)"
        )


def average(samples: Samples) -> Estimate:
    """avg@k: the mean over tasks of the share of successful samples, however many samples a task has."""
    return estimate(list(_shares(samples).values()))


def pass_at(k: int, samples: Samples) -> Estimate | None:
    """pass@k: the probability that at least one of k samples succeeds, without bias (Chen et al. 2021, eq. 1): with c
    successes among n samples 1 - C(n - c, k) / C(n, k). Only tasks with k samples count; None if there are none."""
    whole = [list(of_task) for of_task in samples.values() if len(of_task) >= k]
    values = [_any_of(k, len(one), sum(sample.success for sample in one)) for one in whole]
    return estimate(values) if values else None


def majority(k: int, samples: Samples) -> Estimate | None:
    """maj@k: the success of the answer that most of a task's first k samples give. Samples without an answer do not
    vote; among answers with equally many votes one is drawn, so their mean counts; without votes it is no success.
    Only tasks with k samples count; None if there are none."""
    values = [_voted(of_task[:k]) for of_task in samples.values() if len(of_task) >= k]
    return estimate(values) if values else None


def compare(first: Samples, second: Samples) -> Comparison | None:
    """Compare the success of two models on the tasks that both have samples of; None if there are none."""
    before, after = _shares(first), _shares(second)
    both = [name for name in before if name in after]
    if not both:
        return None
    differences = np.array([after[name] - before[name] for name in both])
    spread = float(np.std(differences, ddof=1)) if len(both) > 1 else 1.0
    normal = NormalDist()
    factor = normal.inv_cdf(0.5 + CONFIDENCE / 2) + normal.inv_cdf(POWER)
    # Where no task differs nothing is known of the spread: then as if the next task differed.
    spread = spread or 1 / math.sqrt(len(both))
    visible = factor * spread / math.sqrt(len(both))
    return Comparison(estimate(differences.tolist(), bounds=(-1.0, 1.0)), _p(differences), visible)


def estimate(values: Sequence[float], bounds: tuple[float, float] = (0.0, 1.0)) -> Estimate:
    """The mean of one value per task with its interval. Where all values are equal, drawing them again tells nothing;
    then the interval is Wilson's for as many tasks, between `bounds`."""
    drawn_from = np.asarray(values, dtype=np.float64)
    mean = float(drawn_from.mean())
    if np.ptp(drawn_from) == 0.0:
        low, high = bounds
        reach = _wilson_reach(len(drawn_from)) * max(abs(low), abs(high))
        return Estimate(mean, max(low, mean - reach), min(high, mean + reach), len(drawn_from))
    rng = np.random.default_rng(_SEED)
    means = drawn_from[rng.integers(0, len(drawn_from), (DRAWS, len(drawn_from)))].mean(axis=1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, (tail, 1 - tail))
    return Estimate(mean, float(low), float(high), len(drawn_from))


def _wilson_reach(tasks: int) -> float:
    """How far from 0 Wilson's interval reaches if none of so many tries succeeded."""
    z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
    return z * z / (tasks + z * z)


def _shares(samples: Samples) -> dict[str, float]:
    return {name: sum(s.success for s in of_task) / len(of_task) for name, of_task in samples.items() if of_task}


def _any_of(k: int, samples: int, successes: int) -> float:
    return 1 - math.comb(samples - successes, k) / math.comb(samples, k)


def _voted(samples: Sequence[Answered]) -> float:
    votes: dict[str, list[bool]] = {}
    for sample in samples:
        if sample.answer is not None:
            votes.setdefault(sample.answer, []).append(sample.success)
    if not votes:
        return 0.0
    most = max(map(len, votes.values()))
    winners = [sum(of_answer) / len(of_answer) for of_answer in votes.values() if len(of_answer) == most]
    return sum(winners) / len(winners)


def _p(differences: Values) -> float:
    """The share of sign patterns whose mean is larger in size; those of the same size count half (mid-p), because with
    few different values many patterns have it, and the test would see less than it says."""
    told = differences[differences != 0.0]
    if not len(told):
        return 1.0
    if len(told) <= EXACT:
        patterns = np.array(np.meshgrid(*[[-1.0, 1.0]] * len(told))).reshape(len(told), -1).T
    else:
        patterns = np.random.default_rng(_SEED).choice((-1.0, 1.0), (DRAWS, len(told)))
        patterns[0] = np.sign(told)  # the one that is there
    sizes, size = np.abs(patterns @ np.abs(told)), abs(told.sum())
    return float((sizes > size + 1e-9).mean() + (np.abs(sizes - size) <= 1e-9).mean() / 2)
