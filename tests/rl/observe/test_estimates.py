"""Estimates of an evaluation, against values worked out by hand and against simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from rl.observe.estimates import Answered, average, compare, estimate, majority, pass_at


def task(*flags: int) -> list[Answered]:
    return [Answered(bool(flag)) for flag in flags]


@pytest.mark.parametrize("successes", range(7))
@pytest.mark.parametrize("k", [1, 2, 3, 6])
def test_pass_at_k_is_the_mean_over_all_choices_of_k_samples(successes: int, k: int) -> None:
    flags = [1] * successes + [0] * (6 - successes)
    every = [any(chosen) for chosen in itertools.combinations(flags, k)]
    found = pass_at(k, {"t": task(*flags)})
    assert found is not None and found.value == pytest.approx(sum(every) / len(every))


def test_tasks_with_too_few_samples_are_not_counted() -> None:
    samples = {"a": task(1, 0), "b": task(1), "c": []}
    found = pass_at(2, samples)
    assert found is not None and (found.value, found.tasks) == (1.0, 1)
    assert pass_at(3, samples) is None and majority(3, samples) is None
    assert (average(samples).value, average(samples).tasks) == (0.75, 2)


@pytest.mark.parametrize(
    ("answers", "value"),
    [
        ([("4", 1), ("4", 1), ("5", 0)], 1.0),
        ([("4", 1), ("5", 0), ("5", 0)], 0.0),
        ([("4", 1), ("5", 0)], 0.5),
        ([(None, 0), (None, 0), ("4", 1)], 1.0),
        ([(None, 0), (None, 0)], 0.0),
        ([("a", 1), ("a", 0), ("b", 0)], 0.5),
        ([("4", 1), ("5", 0), ("6", 0)], 1 / 3),
    ],
)
def test_the_majority_of_answers(answers: list[tuple[str | None, int]], value: float) -> None:
    found = majority(len(answers), {"t": [Answered(bool(success), answer) for answer, success in answers]})
    assert found is not None and found.value == pytest.approx(value)


def test_an_interval_holds_the_expectation_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(300):
        chance = rng.beta(2, 3, 60)
        values = rng.binomial(4, chance) / 4
        found = estimate(values.tolist())
        held += found.low <= 0.4 <= found.high
    assert 0.90 <= held / 300 <= 0.98


@pytest.mark.parametrize(("value", "low", "high"), [(0.0, 0.0, 0.0599), (1.0, 0.9401, 1.0)])
def test_where_all_tasks_agree_the_interval_is_not_a_point(value: float, low: float, high: float) -> None:
    found = estimate([value] * 60)  # Wilson: z² / (n + z²)
    assert (found.value, found.low, found.high) == (value, pytest.approx(low, abs=2e-3), pytest.approx(high, abs=2e-3))
    assert 0 <= estimate([1.0]).low < 0.3


def test_a_test_goes_through_all_signs_of_few_tasks() -> None:
    first = {str(i): task(0) for i in range(6)}
    second = {str(i): task(1) for i in range(6)}
    found = compare(first, second)
    assert found is not None and found.difference.value == 1.0
    assert found.p == pytest.approx(1 / 2**6), "two of the 64 patterns are as extreme, and count half"
    assert found.difference.low < 1.0


def test_tasks_that_only_one_model_has_are_left_out() -> None:
    found = compare({"a": task(1), "b": task(0)}, {"b": task(1), "c": task(0)})
    assert found is not None and (found.difference.value, found.difference.tasks) == (1.0, 1)
    assert compare({"a": task(1)}, {"b": task(1)}) is None


def test_models_that_do_not_differ_are_rarely_called_different() -> None:
    rng = np.random.default_rng(2)
    called = 0
    for _ in range(300):
        chance = rng.random(40)
        first, second = ({str(i): task(*rng.binomial(1, c, 2)) for i, c in enumerate(chance)} for _ in range(2))
        found = compare(first, second)
        assert found is not None
        called += found.p < 0.05
    assert called / 300 <= 0.08


def test_the_difference_that_would_be_seen_is_seen_that_often() -> None:
    rng = np.random.default_rng(3)
    seen, visible = 0, []
    size = 0.25
    for _ in range(300):
        first = {str(i): task(int(rng.random() < 0.4)) for i in range(60)}
        second = {str(i): task(int(rng.random() < 0.4 + size)) for i in range(60)}
        found = compare(first, second)
        assert found is not None
        seen += found.p < 0.05
        visible.append(found.visible)
    power = seen / 300
    assert np.mean(visible) == pytest.approx(2.8 * math.sqrt((0.24 + 0.65 * 0.35) / 60), rel=0.05)
    assert 0.7 <= power <= 0.9, "the visible difference is 0.247, and the true one 0.25"


def test_two_equal_evaluations_say_what_they_could_have_seen() -> None:
    same = {str(i): task(1) for i in range(50)}
    found = compare(same, same)
    assert found is not None and (found.difference.value, found.p) == (0.0, 1.0)
    assert 0 < found.visible < 0.1
    assert "+0.000 (-" in str(found) and "50 tasks" in str(found)
