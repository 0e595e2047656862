"""What a row must say of its tests, and what is refused with the row."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from rewards.judge.answer_side import blocks_of, code_of
from rewards.judge.rows import judged

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no tests": ({"tests": " \n"}, "any answer would pass"),
    "an empty list": ({"tests": [], "entry_point": "f"}, "any answer would pass"),
    "missing": ({}, "Field required"),
    "no program": ({"tests": "def ("}, "not Python"),
    "lines without a name": ({"tests": ["assert f(1) == 1"]}, "needs entry_point"),
    "a line that is no program": ({"tests": ["assert f(1) ==", "2"], "entry_point": "f"}, "not Python"),
    "a name that is none": ({"tests": "f(1)", "entry_point": "f()"}, "no name that a program can define"),
    "a number": ({"tests": 3}, "valid"),
    "cases with a name": ({"tests": [{"input": "1", "output": "2"}], "entry_point": "f"}, "take no entry_point"),
    "a case without an output": ({"tests": [{"input": "1"}]}, "output"),
    "exec of the answer": ({"tests": "x = 1\nexec(answer)"}, "line 2 .* forge"),
    "eval of the answer": ({"tests": "assert eval(answer.strip()) == 3"}, "in_process: true"),
    "exec under another name": ({"tests": "code = answer\nexec(code)"}, "line 2 .* forge"),
    "exec in a function": ({"tests": "def run(code):\n    exec(code)\nrun(answer)"}, "line 2 .* forge"),
    "compile of the answer": ({"tests": "compile(answer + tests, 'x', 'exec')"}, "entry_point"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_row_that_cannot_be_judged_is_refused(name: str) -> None:
    payload, message = REFUSED[name]
    with pytest.raises(ValidationError, match=message):
        judged(payload)


def test_rows_that_are_fine() -> None:
    assert judged({"tests": "assert answer == '4'", "question": 3}).program == "assert answer == '4'"
    assert (
        judged({"tests": ["f(1)", "f(2)"], "entry_point": "f", "setup": "import math"}).program
        == "import math\nf(1)\nf(2)"
    )
    assert judged({"tests": "exec(answer)", "in_process": True}).in_process
    assert judged({"tests": "exec('x = 4')\nassert answer == str(x)"}).entry_point is None
    assert judged({"tests": "assert f(eval(str(1))) == 1", "entry_point": "f"}).entry_point == "f"
    assert [case.output for case in judged({"tests": [{"input": "1", "output": "2"}]}).cases] == ["2"]


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("def f(x): return x", "def f(x): return x"),
        ("Here:\n```python\ndef f(x):\n    return x\n```\nDone.", "def f(x):\n    return x\n"),
        ("```\nimport os\n```\nthen\n```py\ndef f(): pass\n```", "def f(): pass\n"),
        ("```\ndef f(): 1\n```\nbetter:\n```\ndef f(): 2\n```", "def f(): 2\n"),
        ("~~~python\nf = len\n~~~", "f = len\n"),
        ("````md\n```\nf\n```\n````", "```\nf\n```\n"),
        ("```python\ndef f(): return 1", "def f(): return 1"),
        ("```python\na = 1\n```\n```python\nb = 2\n```", "a = 1\n\nb = 2\n"),
        ("    return x + 1", "    return x + 1"),
    ],
)
def test_the_code_of_an_answer(answer: str, code: str) -> None:
    assert code_of(answer, "f") == code


def test_a_text_without_blocks_has_none() -> None:
    assert blocks_of("a `b` c\n``d``") == []
