"""What becomes a plain value, and what is refused by name."""

from __future__ import annotations

import datetime
import decimal
import enum
import json
import pickle
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from rollout.plain import DEPTH, DIGITS, plain


class Colour(str, enum.Enum):  # noqa: UP042 (a StrEnum is a str in another way)
    RED = "red"


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("\ud800 \0 \u2028", "\ud800 \0 \u2028"),
        (None, None),
        (True, True),
        (10**3999, 10**3999),
        (-0.0, -0.0),
        (np.float32(0.5), 0.5),
        (np.int64(-3), -3),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (Colour.RED, "red"),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (np.array(["2026-01-02T03:04:05.123456789"], "datetime64[ns]"), ["2026-01-02T03:04:05.123456789"]),
        ((1, [2, (3,)]), [1, [2, [3]]]),
        (MappingProxyType({"a": (None,)}), {"a": [None]}),
        (datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC), "2026-01-02T03:04:05+00:00"),
        (datetime.date(2026, 1, 2), "2026-01-02"),
        (nested(DEPTH - 1), nested(DEPTH - 1)),
    ],
)
def test_plain(value: Any, expected: Any) -> None:
    found = plain(value, "row 1.payload")
    assert found == expected and type(found) is type(expected)
    assert json.loads(json.dumps(found, allow_nan=False)) == pickle.loads(pickle.dumps(found)) == found


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": [1, b"x"]}, r"payload\.a\[1\] is of type bytes, which JSON has not"),
        ({"a": float("nan")}, r"payload\.a is nan"),
        (np.array([1.0, np.inf]), r"payload\[1\] is inf"),
        ({1: "a"}, r"payload has the key 1 of type int"),
        ({1, 2}, "payload is of type set"),
        (decimal.Decimal("0.1"), "of type Decimal"),
        (datetime.timedelta(1), "of type timedelta"),
        (np.timedelta64(1, "ns"), "is a duration"),
        (10**DIGITS * 10, "more than 4000 digits"),
        (nested(DEPTH + 1), "nested more than 100 levels deep"),
        (nested(100_000), "nested more than 100 levels deep"),
        (object(), "of type object"),
    ],
)
def test_refused(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        plain(value, "payload")
    assert len(str(refused.value)) < 400


def test_a_value_that_holds_itself_is_refused() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(ValueError, match="nested more than"):
        plain(value, "payload")


def test_the_result_shares_nothing_with_what_was_given() -> None:
    given = {"a": [1]}
    found = plain(given, "payload")
    given["a"].append(2)
    assert found == {"a": [1]}
