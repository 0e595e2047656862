"""Metrics of a step, worked by hand; every name must be registered."""

from __future__ import annotations

import pytest

from rl.driver.health import Diverged, check_eval_failures, check_finite
from rl.observe.metrics import check_names
from rl.observe.stepstats import eval_metrics, learner_metrics, rollout_metrics, staleness
from rl.rundir.progress import Progress
from rollout.buffer.buffer import TooManyFailures
from rollout.types import OBSERVED, Group, Sample, Span, Task, Trajectory

STATS = {
    "tokens": 10.0,
    "entropy": 5.0,
    "clipped": 1.0,
    "ratio": 10.0,
    "kl": 0.1,
    "loss": -0.2,
    "fresh_tokens": 4.0,
    "mismatch": 2e-6,
    "grad_norm": 0.5,
    "moe/load_max_over_mean": 1.5,
}


def trajectory(reward: float | None, versions: tuple[int, ...], **changes: object) -> Trajectory:
    mask = tuple(int(v != OBSERVED) for v in versions)
    sample = Sample(token_ids=versions, loss_mask=mask, logprobs=(0.0,) * len(mask), versions=versions)
    values: dict[str, object] = {
        "task_id": "t",
        "group_id": "g",
        "samples": (sample,),
        "messages": (),
        "stop_reason": "answered",
        "outcome": "scored" if reward is not None else "infra_error",
        "reward": reward,
        "reward_parts": {"state": reward} if reward is not None else {},
        "metrics": {"turns": 2.0, "tool_calls": 3.0, "tool_errors": 1.0},
        "spans": (Span(name="generate", start=0.0, end=1.5),),
    }
    return Trajectory(**(values | changes))  # type: ignore[arg-type]


def group(*members: Trajectory, environment: str = "store") -> Group:
    return Group(id="g", task=Task(id="t", environment=environment, messages=()), trajectories=members)


def test_infrastructure_failures_are_counted_and_left_out_of_every_mean() -> None:
    values = rollout_metrics([group(trajectory(1.0, (OBSERVED, 3, 3)), trajectory(None, ()))], success_reward=1.0)
    check_names(values)
    assert values["reward/mean"] == 1.0 and values["rollout/success"] == 1.0
    assert values["error/infra_share"] == 0.5 and values["rollout/trajectories"] == 1.0
    assert values["rollout/tokens_mean"] == 2.0 and values["tools/error_share"] == pytest.approx(1 / 3)
    assert values["reward/part/state"] == 1.0 and values["time/generate_s"] == 1.5


def test_a_step_of_failures_only_has_no_reward() -> None:
    values = rollout_metrics([group(trajectory(None, ()))], success_reward=1.0)
    assert values == {"rollout/trajectories": 0.0, "error/infra_share": 1.0}


def test_staleness_counts_sampled_tokens_of_usable_members_only() -> None:
    groups = [group(trajectory(0.0, (OBSERVED, 4, 5)), trajectory(None, (1,)))]
    assert staleness(groups, version=5) == (0.5, 1)
    assert staleness([], version=5) == (0.0, 0)


def test_held_out_success_is_given_per_environment() -> None:
    groups = [
        group(trajectory(1.0, (0,)), environment="python"),
        group(trajectory(0.5, (0,)), trajectory(1.0, (0,)), environment="store"),
    ]
    values = eval_metrics(groups, success_reward=1.0)
    check_names(values)
    assert values == {
        "eval/success": pytest.approx(2 / 3),
        "eval/success/python": 1.0,
        "eval/success/store": 0.5,
        "eval/infra_share": 0.0,
    }


def test_an_evaluation_that_infrastructure_spoiled_is_no_success_of_zero() -> None:
    spoiled = group(trajectory(None, (), error="no answer"), environment="python")
    half = [spoiled, group(trajectory(1.0, (0,)), environment="store")]
    assert eval_metrics(half, 1.0) == {"eval/success": 1.0, "eval/success/store": 1.0, "eval/infra_share": 0.5}
    assert eval_metrics([spoiled], 1.0) == {"eval/infra_share": 1.0}
    check_eval_failures(half, limit=0.5)
    with pytest.raises(TooManyFailures, match=r"2 of 3 .*\(rollout.failure_share_limit is 0.5\); .* no answer"):
        check_eval_failures([spoiled, *half], limit=0.5)


@pytest.mark.parametrize("name", ["loss", "grad_norm", "mismatch"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_says_which_keys_to_lower(name: str, value: float) -> None:
    check_finite("training step 3", STATS, "trainer.optimizer")
    with pytest.raises(Diverged, match=rf"training step 3: {name} is {value}, .*lower trainer.optimizer.lr or trainer"):
        check_finite("training step 3", STATS | {name: value}, "trainer.optimizer")


def test_learner_sums_become_means_per_trained_token() -> None:
    values = learner_metrics(STATS, lr=1e-3, version=9)
    check_names(values)
    assert values["policy/entropy"] == 0.5 and values["policy/clip_fraction"] == 0.1
    assert values["mismatch/logprob_abs_mean"] == pytest.approx(5e-7)
    assert "mismatch/logprob_abs_mean" not in learner_metrics(STATS | {"fresh_tokens": 0.0}, lr=1e-3, version=9)


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
