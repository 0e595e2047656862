"""Advantages against hand-worked numbers, and what leaves the loss."""

from __future__ import annotations

import math
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl.advantages.common import EPSILON
from rl.advantages.config import AlgorithmConfig
from rl.advantages.grpo import grpo
from rl.advantages.registry import ALGORITHMS
from rl.advantages.reinforce import reinforce
from rl.advantages.rows import train_rows
from rollout.types import OBSERVED, Group, Sample, Task, Trajectory

FAILED = None


def sample(sampled: int = 2) -> Sample:
    return Sample(
        token_ids=(1,) * (sampled + 1),
        loss_mask=(0,) + (1,) * sampled,
        logprobs=(0.0,) + (-1.0,) * sampled,
        versions=(OBSERVED,) + (0,) * sampled,
    )


def trajectory(reward: float | None, samples: tuple[Sample, ...] | None = None) -> Trajectory:
    return Trajectory(
        task_id="t",
        group_id="g",
        samples=(sample(),) if samples is None else samples,
        messages=(),
        stop_reason="aborted" if reward is FAILED else "answered",
        outcome="infra_error" if reward is FAILED else "scored",
        reward=reward,
    )


def group(*members: float | Trajectory | None) -> Group:
    trajectories = tuple(m if isinstance(m, Trajectory) else trajectory(m) for m in members)
    return Group(id="g", task=Task(id="t", environment="e", messages=()), trajectories=trajectories)


def test_grpo_by_hand() -> None:
    assert grpo([[1.0, 0.0, 0.0, 0.0], [2.0, 4.0]], False) == [[0.75, -0.25, -0.25, -0.25], [-1.0, 1.0]]


def test_grpo_normalised_by_hand() -> None:
    """Rewards 1, 0, 0, 0: mean 1/4, population variance 3/16."""
    [values] = grpo([[1.0, 0.0, 0.0, 0.0]], True)
    scale = math.sqrt(3) / 4 + EPSILON
    assert values == pytest.approx([0.75 / scale, -0.25 / scale, -0.25 / scale, -0.25 / scale])


def test_reinforce_by_hand() -> None:
    """One baseline, 2, for the whole step: groups of one and groups of equals are trained."""
    assert reinforce([[1.0], [2.0, 2.0], [3.0], []], False) == [[-1.0], [0.0, 0.0], [1.0], None]
    [[low], [high]] = reinforce([[0.0], [1.0]], True)
    assert (low, high) == pytest.approx((-1.0, 1.0), abs=1e-5)


@pytest.mark.parametrize("algorithm", ALGORITHMS.values())
@pytest.mark.parametrize("rewards", [[], [[]], [[0.5, 0.5]], [[0.1 + 0.2, 0.3]]])
def test_what_teaches_nothing_is_none(algorithm: object, rewards: list[list[float]]) -> None:
    assert callable(algorithm) and algorithm(rewards, True) == [None] * len(rewards)


def test_failures_leave_both_loss_and_baseline() -> None:
    """With the failure counted as 0 the baseline would be 1/3. What it had sampled before it failed isn't trained."""
    members = (
        trajectory(1.0, samples=(sample(1),)),
        trajectory(FAILED, samples=(sample(2),)),
        trajectory(0.0, samples=(sample(3),)),
    )
    rows, _ = train_rows([group(*members)], AlgorithmConfig(normalize_std=False))
    assert [(row.sample.trained_tokens, row.advantage) for row in rows] == [(1, 0.5), (3, -0.5)]


def test_counts_of_groups_that_leave_the_loss() -> None:
    groups = [group(1.0, 0.0), group(1.0, 1.0), group(1.0, FAILED), group(FAILED, FAILED)]
    rows, counts = train_rows(groups, AlgorithmConfig())
    assert len(rows) == 2
    assert counts == {"rollout/groups_unusable": 0.5, "rollout/groups_zero_variance": 0.25}


def test_groups_of_one_are_usable_where_the_algorithm_takes_them() -> None:
    config = AlgorithmConfig(name="reinforce", normalize_std=False)
    rows, counts = train_rows([group(1.0), group(0.0)], config)
    assert [row.advantage for row in rows] == [0.5, -0.5]
    assert counts == {"rollout/groups_unusable": 0.0, "rollout/groups_zero_variance": 0.0}


def test_no_groups_give_no_rows() -> None:
    assert train_rows([], AlgorithmConfig())[0] == []


def test_every_sample_of_a_trajectory_gets_its_advantage_but_untrained_ones_none() -> None:
    forked = trajectory(1.0, samples=(sample(2), sample(0), sample(3)))
    rows, _ = train_rows([group(forked, 0.0)], AlgorithmConfig(normalize_std=False))
    assert [(r.sample.trained_tokens, r.advantage) for r in rows] == [(2, 0.5), (3, 0.5), (2, -0.5)]


def test_every_configurable_name_is_registered() -> None:
    names = get_args(AlgorithmConfig.model_fields["name"].annotation)
    assert set(names) == set(ALGORITHMS)


@given(st.lists(st.lists(st.floats(-10, 10), max_size=8), max_size=8), st.booleans())
def test_advantages_arecentred_ordered_and_finite(rewards: list[list[float]], normalize_std: bool) -> None:
    for values, given_rewards in zip(grpo(rewards, normalize_std), rewards, strict=True):
        if values is not None:
            assert sum(values) == pytest.approx(0.0, abs=1e-6)
            assert all(math.isfinite(v) for v in values)
            best = max(range(len(values)), key=given_rewards.__getitem__)
            assert values[best] == max(values)
