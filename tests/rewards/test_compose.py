"""The total reward, and the rule of success."""

from __future__ import annotations

import pytest

from rewards.compose import check_parts, compose, succeeded


def test_weighted_sum() -> None:
    assert compose({"code": 1.0, "format": 0.5}, {"format": 0.2}) == 1.1
    assert compose({"code": 1.0}, {"code": 0.0}) == 0.0
    assert compose({}, {}) == 0.0


def test_another_environments_weight_is_skipped() -> None:
    assert compose({"code": 1.0}, {"state": 5.0}) == 1.0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_part_must_be_finite(value: float) -> None:
    with pytest.raises(ValueError, match="'code'"):
        compose({"code": value}, {})


def test_unknown_parts_are_errors() -> None:
    check_parts({"code": 2.0}, {"code", "state"})
    with pytest.raises(ValueError, match=r"no reward part 'sate': \['code', 'state'\]; did you mean 'state'"):
        check_parts({"sate": 1.0}, {"code", "state"})


@pytest.mark.parametrize(
    ("rule", "success"),
    [
        ({"reward": 1.0}, True),
        ({"reward": 1.1}, False),
        ({"reward": -2.0, "code": 0.5}, True),
        ({"reward": 1.0, "code": 0.6}, False),
        ({"format": -0.5}, True),
    ],
)
def test_success_needs_every_value_that_the_rule_names(rule: dict[str, float], success: bool) -> None:
    assert succeeded(1.0, {"code": 0.5, "format": -0.5}, rule) is success


@pytest.mark.parametrize("parts", [{"a": 1e308}, {"a": 1e308, "b": 1e308, "c": -1e308}, {"a": -1.7e308, "b": -1.7e308}])
@pytest.mark.parametrize("weight", [1.1, 10.0])
def test_a_sum_that_is_too_large_is_refused(parts: dict[str, float], weight: float) -> None:
    with pytest.raises(ValueError, match="is no finite number"):
        compose(parts, dict.fromkeys(parts, weight * 2))
