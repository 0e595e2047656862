"""From groups to rows: which tokens get which advantage, what each token weighs, and what leaves the loss."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from rl.advantages.common import Advantages, PerToken, PerTurn, Scored
from rl.advantages.config import AdvantageSettings, AggregationConfig, GrpoSettings, ReinforceSettings
from rl.advantages.rows import train_rows
from rl.batch.plan import PlannedRow
from rollout.types import OBSERVED, Group, Sample, Task, Trajectory, Turn
from tests.samples import cards_of, sample_of

FAILED = None
PLAIN = GrpoSettings(name="grpo", normalize_std=False)
TOKEN = AggregationConfig()


def sample(sampled: int = 2) -> Sample:
    return sample_of(
        token_ids=(1,) * (sampled + 1),
        loss_mask=(0,) + (1,) * sampled,
        logprobs=(0.0,) + (-1.0,) * sampled,
        versions=(OBSERVED,) + (0,) * sampled,
    )


def trajectory(
    reward: float | None, samples: tuple[Sample, ...] | None = None, turns: tuple[Turn, ...] | None = None
) -> Trajectory:
    """Without `turns`, each sample is one turn."""
    samples = (sample(),) if samples is None else samples
    each = tuple(Turn(sample=i, start=1, stop=len(one)) for i, one in enumerate(samples))
    return Trajectory(
        task_id="t",
        group_id="g",
        samples=samples,
        turns=each if turns is None else turns,
        messages=(),
        stop_reason="aborted" if reward is FAILED else "answered",
        outcome="infra_error" if reward is FAILED else "scored",
        reward=reward,
        success=None if reward is FAILED else reward > 0,
    )


def group(*members: float | Trajectory | None) -> Group:
    trajectories = tuple(m if isinstance(m, Trajectory) else trajectory(m) for m in members)
    task = Task(id="t", environment="e", source="s", messages=())
    return Group(id="g", task=task, trajectories=trajectories)


def rows_of(groups: list[Group], aggregation: AggregationConfig = TOKEN) -> list[PlannedRow]:
    return train_rows(cards_of(groups), PLAIN, aggregation)[0]


def advantages(rows: Sequence[PlannedRow]) -> list[list[float]]:
    """The advantage of every trained token, row by row."""
    return [np.repeat(row.advantages, row.counts).tolist() for row in rows]


def test_failures_leave_both_loss_and_baseline() -> None:
    """If the failure counted as 0, the baseline would be 1/3. The tokens that it sampled before it failed are not
    trained."""
    members = (
        trajectory(1.0, samples=(sample(1),)),
        trajectory(FAILED, samples=(sample(2),)),
        trajectory(0.0, samples=(sample(3),)),
    )
    assert advantages(rows_of([group(*members)])) == [[0.5], [-0.5, -0.5, -0.5]]


def test_counts_of_groups_that_leave_the_loss() -> None:
    groups = [group(1.0, 0.0), group(1.0, 1.0), group(1.0, FAILED), group(FAILED, FAILED)]
    rows, counts = train_rows(cards_of(groups), PLAIN, TOKEN)
    assert len(rows) == 2
    assert counts == {"rollout/groups_unusable": 0.5, "rollout/groups_zero_variance": 0.25}


def test_a_group_with_two_members_left_is_usable_however_many_failed() -> None:
    rows, counts = train_rows(cards_of([group(1.0, 0.0, FAILED, FAILED)]), PLAIN, TOKEN)
    assert advantages(rows) == [[0.5, 0.5], [-0.5, -0.5]]
    assert counts == {"rollout/groups_unusable": 0.0, "rollout/groups_zero_variance": 0.0}
    assert train_rows(cards_of([group(1.0, 1.0)]), PLAIN, TOKEN)[1]["rollout/groups_zero_variance"] == 1.0


def test_groups_of_equal_rewards_may_be_kept_with_advantages_of_0() -> None:
    groups = [group(1.0, 1.0), group(1.0, 0.0), group(1.0, FAILED)]
    rows, counts = train_rows(cards_of(groups), PLAIN, TOKEN, keep_equal=True)
    assert [row.group for row in rows] == [0, 0, 1, 1]
    assert [value for row in rows for value in row.advantages] == [0.0, 0.0, 0.5, -0.5]
    assert counts == train_rows(cards_of(groups), PLAIN, TOKEN)[1], "they still teach GRPO nothing"


def test_groups_of_one_are_usable_where_the_estimator_takes_them() -> None:
    settings = ReinforceSettings(name="reinforce", normalize_std=False)
    rows, counts = train_rows(cards_of([group(1.0), group(0.0)]), settings, TOKEN)
    assert advantages(rows) == [[0.5, 0.5], [-0.5, -0.5]]
    assert counts == {"rollout/groups_unusable": 0.0, "rollout/groups_zero_variance": 0.0}


def test_a_group_that_is_trained_though_one_member_is_left_is_not_counted_as_unusable() -> None:
    settings = ReinforceSettings(name="reinforce", normalize_std=False)
    rows, counts = train_rows(cards_of([group(1.0, FAILED, FAILED), group(0.0, FAILED)]), settings, TOKEN)
    assert len(rows) == 2 and counts["rollout/groups_unusable"] == 0.0
    assert train_rows(cards_of([group(FAILED, FAILED), group(0.0, 1.0)]), settings, TOKEN)[1] == {
        "rollout/groups_unusable": 0.5, "rollout/groups_zero_variance": 0.0,
    }  # fmt: skip


def test_no_groups_give_no_rows() -> None:
    assert train_rows(cards_of([]), PLAIN, TOKEN) == (
        [],
        {"rollout/groups_unusable": 0.0, "rollout/groups_zero_variance": 0.0},
    )


def test_every_sample_of_a_trajectory_gets_its_advantage_but_untrained_ones_none() -> None:
    forked = trajectory(1.0, samples=(sample(2), sample(0), sample(3)))
    assert advantages(rows_of([group(forked, 0.0)])) == [[0.5] * 2, [0.5] * 3, [-0.5] * 2]


def test_a_row_names_its_group_and_its_sample_and_says_equal_advantages_once() -> None:
    """Samples are numbered over the whole group, failures and untrained samples included."""
    forked = trajectory(1.0, samples=(sample(2), sample(0), sample(3)))
    lost = trajectory(FAILED, samples=(sample(1),))
    rows = rows_of([group(1.0, 1.0), group(lost, forked, 0.0)])
    assert [(row.group, row.sample) for row in rows] == [(1, 1), (1, 3), (1, 4)]
    assert [(row.advantages, row.counts) for row in rows] == [((0.5,), (2,)), ((0.5,), (3,)), ((-0.5,), (2,))]


def test_every_token_keeps_the_temperature_of_its_turn() -> None:
    turns = (
        Turn(sample=0, start=1, stop=2, temperature=0.5),
        Turn(sample=0, start=2, stop=4, temperature=0.5),
        Turn(sample=1, start=1, stop=3, temperature=2.0),
    )
    one = trajectory(1.0, samples=(sample(3), sample(2)), turns=turns)
    rows, _ = train_rows(cards_of([group(one, 0.0)]), PLAIN, TOKEN)
    assert [(row.temperatures, row.counts) for row in rows] == [((0.5,), (3,)), ((2.0,), (2,)), ((1.0,), (2,))]
    rows, _ = train_rows(cards_of([group(one)]), own("by_turn"), TOKEN)
    assert [(row.temperatures, row.counts) for row in rows] == [((0.5, 0.5), (1, 2)), ((2.0,), (2,))]


@pytest.mark.parametrize(
    ("aggregation", "weights"),
    [
        (AggregationConfig(over="token"), [1 / 8, 1 / 8, 1 / 8]),
        (AggregationConfig(over="sequence"), [1 / (3 * 1), 1 / (3 * 3), 1 / (3 * 4)]),
        (AggregationConfig(over="trajectory"), [1 / (2 * 4), 1 / (2 * 4), 1 / (2 * 4)]),
        (AggregationConfig(over="fixed", length=10), [1 / 20, 1 / 20, 1 / 20]),
    ],
)
def test_weights_by_hand(aggregation: AggregationConfig, weights: list[float]) -> None:
    """One trajectory has 1 + 3 trained tokens in two samples, another has 4. The group that leaves the loss changes no
    weight."""
    groups = [group(trajectory(1.0, (sample(1), sample(0), sample(3))), trajectory(0.0, (sample(4),))), group(1.0, 1.0)]
    rows = rows_of(groups, aggregation)
    assert [sum(row.counts) for row in rows] == [1, 3, 4] and [len(row) for row in rows] == [2, 4, 5]
    assert [row.weight for row in rows] == pytest.approx(weights, rel=1e-12)
    if aggregation.over != "fixed":
        assert sum(row.weight * sum(row.counts) for row in rows) == pytest.approx(1.0, rel=1e-12)


FORKED = trajectory(
    1.0,
    samples=(sample(3), sample(2)),
    turns=(
        Turn(sample=0, start=1, stop=2, reward=0.25, state_key="a"),
        Turn(sample=0, start=2, stop=4, reward=0.5),
        Turn(sample=1, start=1, stop=3),
    ),
)


def by_turn(groups: Sequence[Sequence[Scored]], settings: AdvantageSettings) -> Advantages:
    """For each turn its reward, 0 where it has none, plus its number from 0."""
    return [[PerTurn([(turn.reward or 0) + i for i, turn in enumerate(one.turns)]) for one in g] for g in groups]


def by_token(groups: Sequence[Sequence[Scored]], settings: AdvantageSettings) -> Advantages:
    return [[PerToken([1.0, 2.0, 3.0, 4.0, 5.0]) for _ in g] for g in groups]


def one_too_few(groups: Sequence[Sequence[Scored]], settings: AdvantageSettings) -> Advantages:
    return [[PerToken([1.0]) for _ in g] for g in groups]


def a_turn_too_many(groups: Sequence[Sequence[Scored]], settings: AdvantageSettings) -> Advantages:
    return [[PerTurn([0.0] * 4) for _ in g] for g in groups]


def not_a_number(groups: Sequence[Sequence[Scored]], settings: AdvantageSettings) -> Advantages:
    return [[float("nan") for _ in g] for g in groups]


def own(function: str) -> AdvantageSettings:
    return AdvantageSettings(name=f"{__file__}:{function}")


@pytest.mark.parametrize(
    ("function", "expected"),
    [("by_turn", [[0.25, 1.5, 1.5], [2.0, 2.0]]), ("by_token", [[1.0, 2.0, 3.0], [4.0, 5.0]])],
)
def test_advantages_of_turns_and_tokens_reach_the_right_samples(function: str, expected: list[list[float]]) -> None:
    rows, _ = train_rows(cards_of([group(FORKED)]), own(function), TOKEN)
    assert advantages(rows) == expected


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("one_too_few", "task t in group g: trained tokens: 5 of them, but 1 advantages"),
        ("a_turn_too_many", "task t in group g: turns: 3 of them, but 4 advantages"),
        ("not_a_number", r"task t in group g: an advantage is not finite: \[nan"),
    ],
)
def test_a_wrong_answer_of_an_estimator_is_named(function: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train_rows(cards_of([group(FORKED)]), own(function), TOKEN)
