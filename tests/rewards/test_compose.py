from __future__ import annotations

import pytest

from rewards.compose import check_weights, compose


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


def test_unknown_weights_are_errors() -> None:
    check_weights({"code": 2.0}, {"code", "state"})
    with pytest.raises(ValueError, match=r"'sate'.*did you mean 'state'"):
        check_weights({"sate": 1.0}, {"code", "state"})
    with pytest.raises(ValueError, match="finite"):
        check_weights({"code": float("nan")}, {"code"})
