"""Names in error messages: sorted, and not too many of them."""

from __future__ import annotations

import pytest

from rewards.errors import listed, one_line


@pytest.mark.parametrize("count", [1, 8, 9, 20])
def test_a_message_lists_the_first_names_and_counts_the_others(count: int) -> None:
    names = [f"w{i:02}" for i in range(count)]
    more = f" and {count - 8} more" if count > 8 else ""
    assert listed(names[::-1]) == ", ".join(names[:8]) + more


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain → ü", "plain → ü"),
        ("a\nb\x1b[2J\0", r"a\nb\x1b[2J\x00"),
        ("\ud800\u2028\u202e", r"\ud800\u2028\u202e"),
        ("x" * 50, "x" * 50),
        ("x" * 51, "x" * 49 + "…"),
        ("\0" * 40, r"\x00" * 12 + r"\…"),
    ],
)
def test_one_line(text: str, expected: str) -> None:
    assert one_line(text, 50) == expected
