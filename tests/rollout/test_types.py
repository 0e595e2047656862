"""Data that contradicts itself cannot be made; the error says what disagrees."""

from __future__ import annotations

import re

import numpy as np
import pytest

from rollout.types import OBSERVED, SAMPLE_DTYPES, Completion, Sample, Trajectory
from tests.samples import sample_of


def test_lists_of_different_length_are_counted() -> None:
    with pytest.raises(ValueError, match=r"a completion's lists differ in length: 2 tokens, 1 logprobs, 3 versions"):
        Completion(token_ids=(1, 2), logprobs=(0.0,), versions=(0, 0, 0), finish_reason="stop")
    with pytest.raises(ValueError, match=r"a sample's logprobs are float32 \(3,\), expected float32 \(1,\) like its"):
        sample_of(token_ids=(1,), loss_mask=(0,), logprobs=(0.0,) * 3, versions=(OBSERVED,))


def test_a_sample_takes_no_array_of_another_type_or_shape() -> None:
    good = sample_of(token_ids=(1, 2), loss_mask=(0, 1), logprobs=(0.0, -1.0), versions=(OBSERVED, 3))
    arrays = {name: getattr(good, name) for name in SAMPLE_DTYPES}
    assert Sample(**arrays) == good and sum(array.nbytes for array in arrays.values()) == 13 * len(good)
    with pytest.raises(ValueError, match=r"versions are int64 \(2,\), expected int32 \(2,\)"):
        Sample(**arrays | {"versions": good.versions.astype(np.int64)})
    with pytest.raises(ValueError, match=r"token_ids are int32 \(1, 2\), expected int32 \(1,\)"):
        Sample(**arrays | {"token_ids": good.token_ids[None]})


def test_samples_are_equal_when_every_array_is() -> None:
    def made(token: int = 2, mask: int = 1, logprob: float = -1.0, version: int = 3) -> Sample:
        return sample_of(token_ids=(1, token), loss_mask=(0, mask), logprobs=(0.0, logprob), versions=(-1, version))

    assert made() == made() != "a sample"
    assert all(
        made() != other for other in (made(token=3), made(mask=0, version=-1), made(logprob=-2.0), made(version=4))
    )


def test_the_versions_of_the_sampled_tokens() -> None:
    sample = sample_of(token_ids=(1, 2, 3), loss_mask=(0, 1, 1), logprobs=(0.0, 0.0, 0.0), versions=(OBSERVED, 5, 4))
    assert sample.sampled_versions().tolist() == [5, 4] and sample.oldest_version() == 4
    assert sample_of(token_ids=(1,), loss_mask=(0,), logprobs=(0.0,), versions=(OBSERVED,)).oldest_version() is None


@pytest.mark.parametrize(("mask", "version"), [(1, OBSERVED), (0, 3), (2, 3), (2, OBSERVED)])
def test_a_sampled_token_has_a_version_and_an_observed_one_has_none(mask: int, version: int) -> None:
    message = f"position 1: mask {mask} disagrees with version {version}"
    with pytest.raises(ValueError, match=re.escape(message)):
        sample_of(token_ids=(1, 2), loss_mask=(0, mask), logprobs=(0.0, 0.0), versions=(OBSERVED, version))


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
