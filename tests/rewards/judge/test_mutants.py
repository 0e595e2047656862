# ruff: noqa: E501 (programs, as they are written)
"""Programs and small mistakes in them are judged over the socket as by running everything in one process.

`benchmarks/judge_parity.py` does the same with HumanEval; its table is in benchmarks/README.md.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from benchmarks.mutants import mutants
from rewards.judge.judge import judge
from rewards.judge.rows import judged
from tests.rewards.judge.judge_support import LIMITS, sandbox_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

PROGRAMS = {
    "total": (
        "def total(items):\n    found = 0\n    for item in items:\n        if item > 0 and item % 2 == 0:\n            found = found + item * 2\n    return found - 1",
        ["assert total([1, 2, 3, 4]) == 11", "assert total([]) == -1 and total([-2]) == -1"],
    ),
    "runs": (
        "def runs(items):\n    found = []\n    for item in items:\n        if found and found[-1][0] == item:\n"
        "            found[-1] = (item, found[-1][1] + 1)\n        else:\n            found.append((item, 1))\n    return found",
        ["assert runs('aab') == [('a', 2), ('b', 1)]", "assert runs([]) == []"],
    ),
    "clip": (
        "def clip(x, low, high):\n    if x < low:\n        return low\n    if x > high:\n        return high\n    return x",
        ["assert clip(5, 0, 3) == 3 and clip(-1, 0, 3) == 0 and clip(2, 0, 3) == 2", "assert abs(clip(0.5, 0, 1) - 0.5) < 1e-9"],
    ),
    "invert": (
        "def invert(table):\n    for key in list(table):\n        if table[key] not in table or key + 1 == 0:\n"
        "            table[table[key]] = key\n    return table",
        ["d = {1: 2}\nassert invert(d) is d and d == {1: 2, 2: 1}"],
    ),
}  # fmt: skip
CASES = [
    (name, source, tests)
    for number, (name, (program, tests)) in enumerate(PROGRAMS.items())
    for source in (program, *mutants(program, name, 4, seed=number))
]


def in_one_process(source: str, tests: list[str]) -> bool:
    program = "\n".join([source, *tests])
    try:
        return subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, timeout=10).returncode == 0
    except subprocess.TimeoutExpired:  # a mutant that goes on for ever
        return False


def test_verdicts_are_those_of_an_ordinary_check() -> None:
    async def verdicts() -> list[str]:
        sandbox = sandbox_of(LIMITS.model_copy(update={"wall_s": 5.0}))
        rows = [judged({"entry_point": name, "tests": tests}) for name, _, tests in CASES]
        found = await asyncio.gather(*(judge(sandbox, row, case[1]) for row, case in zip(rows, CASES, strict=True)))
        return [verdict.kind for verdict in found]

    expected = ["passed" if in_one_process(source, tests) else "failed" for _, source, tests in CASES]
    assert asyncio.run(verdicts()) == expected
    assert {"passed", "failed"} == set(expected) and len(CASES) == 20
