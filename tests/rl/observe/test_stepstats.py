"""Metrics of a step, worked by hand; every name must be registered."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest

from rl.driver.health import Diverged, check_eval_failures, check_finite
from rl.observe.evaluation import Evaluation
from rl.observe.metrics import check_names
from rl.observe.stepstats import learner_metrics, rollout_metrics, staleness
from rl.rundir.progress import Progress
from rollout.buffer.buffer import TooManyFailures
from rollout.cards import Card
from rollout.types import OBSERVED, Group, Sample, Task, Trajectory, Turn
from tests.samples import cards_of, sample_of

STATS = {
    "tokens": 10.0,
    "entropy": 5.0,
    "clipped": 1.0,
    "ratio": 11.0,
    "kl": 0.1,
    "rejected": 2.0,
    "loss": -0.2,
    "fresh_tokens": 4.0,
    "mismatch": 2e-6,
    "grad_norm": 0.5,
    "moe/load_max_over_mean": 1.5,
}


def sample(*versions: int) -> Sample:
    mask = tuple(int(v != OBSERVED) for v in versions)
    return sample_of(token_ids=versions, loss_mask=mask, logprobs=(0.0,) * len(mask), versions=versions)


def trajectory(reward: float | None, versions: tuple[int, ...], **changes: Any) -> Trajectory:
    values: dict[str, Any] = {
        "task_id": "t",
        "group_id": "g",
        "samples": (sample(*versions),),
        "messages": (),
        "stop_reason": "answered",
        "outcome": "scored" if reward is not None else "infra_error",
        "reward": reward,
        "success": None if reward is None else reward >= 1.0,
        "reward_parts": {"state": reward} if reward is not None else {},
        "metrics": {"tool_calls": 3.0, "tool_errors": 1.0, "generate_s": 1.5},
        "turns": (Turn(sample=0, start=1, stop=2), Turn(sample=0, start=2, stop=3)),
    }
    return Trajectory(**(values | changes))


def group(*members: Trajectory, source: str = "store") -> Card:
    task = Task(id="t", environment="e", source=source, messages=())
    return cards_of([Group(id="g", task=task, trajectories=members)])[0]


def test_every_metric_of_the_rollouts_by_hand() -> None:
    """Three trajectories count, with rewards 1, -0.5 and 1. The fourth failed and counts in error/infra_share only."""
    first = trajectory(
        1.0,
        (OBSERVED, 3, 3),
        metrics={
            "tool_calls": 3.0,
            "tool_errors": 1.0,
            "generate_s": 2.5,
            "environment_s": 0.5,
            "reward_s": 0.25,
        },
    )
    second = trajectory(
        -0.5,
        (OBSERVED, 2),
        outcome="truncated",
        stop_reason="malformed",
        samples=(sample(OBSERVED, 2), sample(OBSERVED, OBSERVED, 2, 2, 2)),
        turns=(Turn(sample=0, start=1, stop=2),),
        metrics={"tool_calls": 1.0, "tool_errors": 1.0, "generate_s": 1.5, "bridge_breaks": 2.0},
        reward_parts={"state": 0.0, "length": -0.5},
    )
    third = trajectory(1.0, (OBSERVED, 3), metrics={}, turns=(), stop_reason="turn_limit", outcome="truncated")
    failed = trajectory(None, (OBSERVED, 1, 1, 1))
    values = rollout_metrics([group(first, second), group(third, failed)])
    check_names(values)
    assert values == pytest.approx(
        {
            "rollout/trajectories": 3,
            "error/infra_share": 1 / 4,
            "reward/mean": 0.5,
            "reward/std": math.sqrt(0.5),  # deviations 0.5, -1, 0.5: mean square 1/2
            "reward/part/state": 2 / 3,
            "reward/part/length": -0.5,
            "rollout/success": 2 / 3,
            "rollout/turns_mean": 1.0,
            "rollout/tokens_mean": (2 + 4 + 1) / 3,
            "rollout/truncated_share": 2 / 3,
            "rollout/malformed_share": 1 / 3,
            "tokens/bridge_breaks": 2.0,
            "tools/calls_mean": 4 / 3,
            "tools/error_share": 2 / 4,
            "time/generate_s": (2.5 + 1.5 + 0) / 3,
            "time/environment_s": (0.5 + 0.25) / 3,
        },
        rel=1e-12,
    )


def test_without_a_tool_call_no_share_of_them_is_an_error() -> None:
    values = rollout_metrics([group(trajectory(0.0, (OBSERVED, 1), metrics={}))])
    assert values["tools/error_share"] == values["tools/calls_mean"] == 0.0


def test_a_step_of_failures_only_has_no_reward() -> None:
    values = rollout_metrics([group(trajectory(None, ()))])
    assert values == {"rollout/trajectories": 0.0, "error/infra_share": 1.0}
    assert rollout_metrics([]) == {"rollout/trajectories": 0.0, "error/infra_share": 0.0}


def test_staleness_counts_sampled_tokens_of_usable_members_only() -> None:
    groups = [group(trajectory(0.0, (OBSERVED, 4, 5)), trajectory(None, (1,)))]
    assert staleness(groups, version=5) == (0.5, 1)
    assert staleness([], version=5) == (0.0, 0)


def test_an_evaluation_that_infrastructure_spoiled_is_no_success_of_zero() -> None:
    spoiled = group(trajectory(None, (), error="no answer"), source="python")
    half = [spoiled, group(trajectory(1.0, (0,)), source="store")]
    tasks = [Task(id="t", environment="python", messages=())] * 2
    values = Evaluation.of_cards(half, tasks, 3).metrics()
    assert (values["eval/success"], values["eval/success/store"], values["eval/infra_share"]) == (1.0, 1.0, 0.5)
    assert Evaluation.of_cards([spoiled], tasks[:1], 3).metrics() == {"eval/infra_share": 1.0}
    check_eval_failures(half, limit=0.5)
    earlier = group(trajectory(None, (), error="refused"), source="python")
    with pytest.raises(TooManyFailures, match=r"2 of 3 .*\(rollout.failure_share_limit is 0.5\); .* no answer$"):
        check_eval_failures([earlier, *half], limit=0.5)


@pytest.mark.parametrize("name", ["loss", "grad_norm", "mismatch"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_says_which_keys_to_lower(name: str, value: float) -> None:
    check_finite("training step 3", STATS, "trainer.optimizer")
    with pytest.raises(Diverged, match=rf"training step 3: {name} is {value}, .*lower trainer.optimizer.lr or trainer"):
        check_finite("training step 3", STATS | {name: value}, "trainer.optimizer")


LEARNED: Mapping[str, float] = {
    "policy/version": 9.0,
    "loss/policy": -0.2,
    "optim/lr": 1e-3,
    "optim/grad_norm": 0.5,
    "perf/trained_tokens": 10.0,
    "policy/entropy": 0.5,
    "policy/clip_fraction": 0.1,
    "policy/ratio_mean": 1.1,
    "policy/kl_behaviour": 0.01,
    "policy/rejected_fraction": 0.2,
    "mismatch/fresh_tokens": 4.0,
    "mismatch/logprob_abs_mean": 5e-7,
    "moe/load_max_over_mean": 1.5,
}


def test_learner_sums_become_means_per_trained_token() -> None:
    values = learner_metrics(STATS, lr=1e-3, version=9)
    check_names(values)
    assert values == pytest.approx(dict(LEARNED), rel=1e-12)


def test_a_statistic_of_the_recipes_own_loss_has_its_mean_under_its_name() -> None:
    values = learner_metrics(STATS | {"surprise": 3.0}, lr=1e-3, version=9)
    check_names(values)
    assert values == pytest.approx(LEARNED | {"loss/surprise": 0.3}, rel=1e-12)


def test_what_a_step_did_not_have_is_left_out() -> None:
    without = {name: value for name, value in STATS.items() if name not in ("clipped", "moe/load_max_over_mean")}
    values = learner_metrics(without | {"fresh_tokens": 0.0, "mismatch": 0.0}, lr=1e-3, version=9)
    left_out = {"mismatch/logprob_abs_mean", "policy/clip_fraction", "moe/load_max_over_mean"}
    assert values.keys() == LEARNED.keys() - left_out


def test_progress_survives_a_checkpoint_and_weighs_the_mismatch_by_tokens() -> None:
    progress = Progress()
    assert progress.mismatch_mean is None
    progress.add_step(STATS, staleness_max=1)
    progress.add_step(STATS | {"fresh_tokens": 0.0, "mismatch": 0.0}, staleness_max=0)
    progress.add_step(None, staleness_max=0)
    again = Progress.from_dict(progress.to_dict())
    assert again == progress
    assert (again.step, again.version, again.trained_tokens, again.staleness_max) == (3, 3, 20, 1)
    assert again.mismatch_mean == pytest.approx(5e-7)
