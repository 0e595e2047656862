"""Data that contradicts itself cannot be made; the error says what disagrees."""

from __future__ import annotations

import re

import pytest

from rollout.types import OBSERVED, Completion, Sample, Trajectory


def test_lists_of_different_length_are_counted() -> None:
    with pytest.raises(ValueError, match=r"a completion's lists differ in length: 2 tokens, 1 logprobs, 3 versions"):
        Completion(token_ids=(1, 2), logprobs=(0.0,), versions=(0, 0, 0), finish_reason="stop")
    with pytest.raises(ValueError, match=r"differ in length: 1 tokens, 2 mask, 3 logprobs, 4 versions"):
        Sample(token_ids=(1,), loss_mask=(0, 0), logprobs=(0.0,) * 3, versions=(OBSERVED,) * 4)


@pytest.mark.parametrize(("mask", "version"), [(1, OBSERVED), (0, 3)])
def test_a_sampled_token_has_a_version_and_an_observed_one_has_none(mask: int, version: int) -> None:
    message = f"position 1: mask {mask} disagrees with version {version}"
    with pytest.raises(ValueError, match=re.escape(message)):
        Sample(token_ids=(1, 2), loss_mask=(0, mask), logprobs=(0.0, 0.0), versions=(OBSERVED, version))


@pytest.mark.parametrize(
    ("outcome", "reward", "success", "words"),
    [
        ("infra_error", 0.0, None, "outcome 'infra_error' with reward 0.0: a failure is data, never a reward"),
        ("infra_error", None, False, "outcome 'infra_error' with success False"),
        ("scored", None, True, "outcome 'scored' with reward None"),
        ("scored", 1.0, None, "outcome 'scored' with success None"),
    ],
)
def test_a_failure_has_no_reward_and_whatever_was_judged_has_one(
    outcome: str, reward: float | None, success: bool | None, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        Trajectory(
            task_id="t",
            group_id="g",
            samples=(),
            messages=(),
            stop_reason="answered",
            outcome=outcome,  # type: ignore[arg-type]
            reward=reward,
            success=success,
        )
