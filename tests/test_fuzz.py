"""Five hundred malformed inputs of a fixed seed; `.venv/bin/python -m tests.fuzzing` tries more."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzzing import FUZZERS, fuzz

CASES = 125


@pytest.mark.parametrize("kind", FUZZERS)
def test_malformed_inputs_are_used_or_refused_in_a_line(kind: str, tmp_path: Path) -> None:
    for number in range(CASES):
        try:
            fuzz(kind, 0, number, tmp_path)
        except Exception as error:
            raise AssertionError(f"{kind}/{number} of seed 0") from error
