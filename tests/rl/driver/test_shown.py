from __future__ import annotations

from collections.abc import Sequence

from rl.batch.plan import PlannedRow
from rl.driver.shown import choose
from rollout.types import Group, Task, Trajectory
from tests.samples import cards_of, failed_trajectory, sample_of

TASK = Task(id="t", environment="reasoning", messages=())


def member(reward: float, samples: int) -> Trajectory:
    sample = sample_of(token_ids=[1, 2, 3], loss_mask=[0, 1, 1], logprobs=[0, -1, -1], versions=[-1, 0, 0])
    return Trajectory(
        task_id="t",
        group_id="g",
        samples=(sample,) * samples,
        messages=(),
        stop_reason="answered",
        outcome="scored",
        reward=reward,
        success=reward > 0,
    )


def row(group: int, sample: int, advantages: Sequence[float], counts: Sequence[int]) -> PlannedRow:
    return PlannedRow(
        group=group,
        sample=sample,
        length=3,
        advantages=tuple(advantages),
        temperatures=(1.0,) * len(counts),
        counts=tuple(counts),
        weight=1.0,
    )


def test_of_groups_at_even_distances_the_best_and_the_worst_are_chosen() -> None:
    groups = [
        Group(id=f"g{i}", task=TASK, trajectories=(member(0.5, 2), member(1.0, 1), member(0.0, 1))) for i in range(5)
    ]
    rows = [row(0, 0, [1.0, 4.0], [2, 1]), row(0, 1, [2.0], [1]), row(0, 2, [0.5], [2]), row(0, 3, [-0.5], [2])]
    chosen = choose(cards_of(groups), rows, 6)
    assert [(one.address.record, one.member) for one in chosen] == [(0, 1), (0, 2), (2, 1), (2, 2), (4, 1), (4, 2)]
    assert [one.advantage for one in chosen] == [0.5, -0.5, None, None, None, None]


def test_the_advantage_is_the_mean_over_all_tokens_of_all_samples() -> None:
    cards = cards_of([Group(id="g", task=TASK, trajectories=(failed_trajectory("t", "g"), member(1.0, 2)))])
    (one,) = choose(cards, [row(0, 0, [1.0, 4.0], [1, 1]), row(0, 1, [2.0], [2])], 8)
    assert (one.member, one.advantage) == (1, 9 / 4)


def test_groups_of_failures_show_nothing_and_a_step_may_be_empty() -> None:
    lost = Group(id="g", task=TASK, trajectories=(failed_trajectory("t", "g"),))
    assert choose(cards_of([lost]), [], 4) == []
    assert choose([], [], 4) == []
