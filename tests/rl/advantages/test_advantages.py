"""The estimators against numbers worked by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl.advantages.common import EPSILON, Advantages, Baseline, Scored
from rl.advantages.config import GrpoSettings, ReinforceSettings
from rl.advantages.grpo import grpo
from rl.advantages.reinforce import reinforce

GRPO, PLAIN_GRPO = (GrpoSettings(name="grpo", normalize_std=normalize) for normalize in (True, False))
REINFORCE, PLAIN_REINFORCE = (
    ReinforceSettings(name="reinforce", normalize_std=normalize) for normalize in (True, False)
)


def scored(rewards: list[list[float]]) -> list[list[Scored]]:
    return [[Scored(reward=reward) for reward in group] for group in rewards]


def test_grpo_by_hand() -> None:
    found = grpo(scored([[1.0, 0.0, 0.0, 0.0], [2.0, 4.0]]), PLAIN_GRPO)
    assert found == [[0.75, -0.25, -0.25, -0.25], [-1.0, 1.0]]


def test_grpo_normalised_by_hand() -> None:
    """Rewards 1, 0, 0, 0: mean 1/4, population variance 3/16."""
    [values] = grpo(scored([[1.0, 0.0, 0.0, 0.0]]), GRPO)
    scale = math.sqrt(3) / 4 + EPSILON
    assert values == pytest.approx([0.75 / scale, -0.25 / scale, -0.25 / scale, -0.25 / scale], rel=1e-12)


def test_reinforce_by_hand() -> None:
    """The whole step has one baseline, 2, so groups of one member and groups of equal rewards are trained, too."""
    assert reinforce(scored([[1.0], [2.0, 2.0], [3.0], []]), PLAIN_REINFORCE) == [[-1.0], [0.0, 0.0], [1.0], None]


def test_reinforce_normalised_by_hand() -> None:
    """Rewards 0 and 1: mean 1/2, population standard deviation 1/2."""
    [[low], [high]] = reinforce(scored([[0.0], [1.0]]), REINFORCE)
    assert (low, high) == pytest.approx((-0.5 / (0.5 + EPSILON), 0.5 / (0.5 + EPSILON)), rel=1e-12)


@pytest.mark.parametrize(
    "estimate",
    [lambda groups: grpo(groups, GRPO), lambda groups: reinforce(groups, REINFORCE)],
    ids=["grpo", "reinforce"],
)
@pytest.mark.parametrize("rewards", [[], [[]], [[0.5, 0.5]], [[0.1 + 0.2, 0.3]], [[0.0, 0.9 * EPSILON]]])
def test_what_teaches_nothing_is_none(
    estimate: Callable[[list[list[Scored]]], Advantages], rewards: list[list[float]]
) -> None:
    assert estimate(scored(rewards)) == [None] * len(rewards)


def test_rewards_an_epsilon_apart_are_compared() -> None:
    assert grpo(scored([[0.0, EPSILON]]), PLAIN_GRPO) == [[-EPSILON / 2, EPSILON / 2]]


@given(st.lists(st.lists(st.floats(-10, 10), max_size=8), max_size=8), st.sampled_from([GRPO, PLAIN_GRPO]))
def test_advantages_are_centred_ordered_and_finite(rewards: list[list[float]], settings: GrpoSettings) -> None:
    for values, given_rewards in zip(grpo(scored(rewards), settings), rewards, strict=True):
        if values is not None:
            assert sum(values) == pytest.approx(0.0, abs=1e-6)
            assert all(math.isfinite(v) for v in values)
            best = max(range(len(values)), key=given_rewards.__getitem__)
            assert values[best] == max(values)


def test_rewards_of_any_size_have_a_deviation() -> None:
    """A square of 1e300 does not fit a float, and raises in Python."""
    baseline = Baseline.of([1e300, -1e300], normalize_std=True)
    assert [baseline.advantage(reward) for reward in (1e300, -1e300)] == [1.0, -1.0]
