"""Names in error messages: sorted, and not too many of them."""

from __future__ import annotations

import pytest

from rewards.errors import listed


@pytest.mark.parametrize("count", [1, 8, 9, 20])
def test_a_message_lists_the_first_names_and_counts_the_others(count: int) -> None:
    names = [f"w{i:02}" for i in range(count)]
    more = f" and {count - 8} more" if count > 8 else ""
    assert listed(names[::-1]) == ", ".join(names[:8]) + more
