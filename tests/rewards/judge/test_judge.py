# ruff: noqa: E501 (programs, as they are written)
"""Verdicts: what an answer earns, what is the tests' own fault, and what is said of it."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest

from rewards.errors import InfrastructureError
from rewards.judge.judge import Judge, Verdict
from rewards.judge.rows import judged
from rewards.sandbox.sandbox import Execution, Outcome, Program, Sandbox, queued_s
from tests.rewards.judge.judge_support import LIMITS, score, verdict

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

FORTY_TWO = {"tests": "assert answer.strip() == '42'"}


def called(tests: str | list[str], **others: Any) -> dict[str, Any]:
    return {"entry_point": "f", "tests": tests, **others}


def test_the_text_of_an_answer() -> None:
    assert [score(FORTY_TWO, answer) for answer in (" 42\n", "41", None)] == [1.0, 0.0, 0.0]
    assert score({"tests": "import sys\nassert sys.stdin.read() == 'grüße'"}, "grüße") == 1.0


@pytest.mark.parametrize("answer", ["'''\"\"\"\\", "{x}\n\r\0", "\ud800", "😀", "\\u0041", ""])
def test_an_answer_arrives_as_it_is(answer: str) -> None:
    assert score({"tests": f"assert answer == {answer!a}"}, answer) == 1.0


@pytest.mark.parametrize(
    "answer", ["42' or 1 or '", "'\nimport sys; sys.exit(0)\n'", "__import__('os')._exit(0)", "print('passed')"]
)
def test_the_text_of_an_answer_is_never_evaluated(answer: str) -> None:
    assert score(FORTY_TWO, answer) == 0.0


@pytest.mark.parametrize(
    "tests",
    [
        "from __future__ import annotations\nassert answer == '4'",
        "assert answer == '4'\nimport sys\nsys.exit(0)",
        "import unittest\nclass T(unittest.TestCase):\n    def test_it(self): self.assertEqual(answer, '4')\nunittest.main()",
        "import atexit\natexit.register(print, 'bye')\nassert answer == '4'",
        "import sys, io\nsys.stdout = io.StringIO()\nassert answer == '4'",
        "import threading, time\nthreading.Thread(target=lambda: (time.sleep(0.1), print('late'))).start()\nassert answer == '4'",
        "print('x' * 100_000)\nassert answer == '4'",
        "import os\nos.close(1)\nos.close(2)\nassert answer == '4'",
        "if __name__ == '__main__':\n    assert answer == '4'",
        "exit_code = 0\nassert answer == '4'\nexit(exit_code)",
        "'''A docstring.'''\nfrom __future__ import division\ntests = [1, 2]\nassert answer == '4'",
    ],
)
def test_tests_are_judged_by_how_they_end(tests: str) -> None:
    assert (score({"tests": tests}, "4"), score({"tests": tests}, "5")) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("tests", "why"),
    [
        ("import numpyx", "numpyx"),
        ("assret(answer)", "assret"),
        ("open('/data/expected.txt')", "expected.txt"),
        ("from math import cosinus", "cosinus"),
        ("def f(x): return y\nassert f(answer)", "y"),
    ],
)
def test_broken_tests_are_an_infrastructure_failure_that_names_the_task(tests: str, why: str) -> None:
    with pytest.raises(InfrastructureError, match=f"the tests of task row-7 are broken: .*{why}"):
        score({"tests": tests}, "4")


@pytest.mark.parametrize(
    ("tests", "answer"),
    [
        ("assert int(answer) == 42", "forty-two"),
        ("open(answer)", "/data/expected.txt"),
        ("import json\nassert json.loads(answer)['x'] == 1", "{"),
        ("while answer: pass", "x"),
        ("x = [0] * 10**9", "x"),
        ("import sys\nsys.exit(answer)", "wrong"),
        ("1 / int(answer)", "0"),
    ],
)
def test_what_an_answer_makes_the_tests_do_counts_against_it(tests: str, answer: str) -> None:
    assert score({"tests": tests}, answer, cpu_s=1) == 0.0


def test_the_reference_decides_whether_tests_are_broken() -> None:
    right, wrong = "def f(x): return x + 1", "def f(x): return x"
    fine, broken = called("assert f(1) == 2"), called("assert f(1) == 3")
    assert score(fine | {"reference": right}, wrong) == 0.0
    with pytest.raises(InfrastructureError, match="row-7 are broken: the reference answer does not pass them: Assert"):
        score(broken | {"reference": right}, wrong)
    with pytest.raises(InfrastructureError, match="row-7 are broken"):
        score(broken | {"reference": right}, right)
    assert score({"tests": "assert answer == '4'", "reference": "4"}, "5") == 0.0


@pytest.mark.parametrize(
    ("payload", "right", "wrong"),
    [
        (called(["assert f(2) == 4", "assert f(3) == 9"]), "def f(x): return x * x", "def f(x): return x + 2"),
        (
            {"entry_point": "double", "prompt": 'def double(x):\n    """Twice x."""\n',
             "tests": "def check(candidate):\n    assert candidate(4) == 8\n"},
            "    return 2 * x\n", "    return x\n",
        ),
        (
            {"entry_point": "double", "prompt": 'def double(x):\n    """Twice x."""\n', "tests": "assert double(4) == 8"},
            "Sure!\n```python\ndef double(x):\n    return 2 * x\n```\n", "```python\ndef double(x):\n    return 3\n```",
        ),
        (
            {"entry_point": "g", "prompt": "import math\ndef area(r):\n    return math.pi * r\ndef g(r):\n    '''Twice.'''\n",
             "tests": "assert abs(g(1) - 2 * area(1)) < 1e-9"},
            "    return 2 * area(r)", "    return area(r)",
        ),
        (called("l = [3, 1]\nassert f(l) is None and l == [1, 3]"), "def f(l): l.sort()", "def f(l): return sorted(l)"),
        (called("d = {'a': [1]}\nf(d)\nassert d == {'a': [1, 2], 'b': 0}"),
         "def f(d):\n d['a'].append(2)\n d['b'] = 0", "def f(d): d.clear()"),
        (called("g = f(3)\nassert next(g) == 0 and list(g) == [1, 2]"), "def f(n): yield from range(n)", "def f(n): yield 0"),
        (called("assert f(lambda x: x + 1, [1, 2]) == [2, 3]"), "def f(g, l): return [g(x) for x in l]", "def f(g, l): return l"),
        (called("assert f(iter([1, 2])) == 3"), "def f(i): return sum(i)", "def f(i): return next(i)"),
        (called("try:\n    f(-1)\nexcept ValueError as error:\n    assert 'negative' in str(error)\nelse:\n    assert False"),
         "def f(x):\n if x < 0: raise ValueError('negative')", "def f(x): raise KeyError('negative')"),
        (called("try:\n    f()\nexcept LookupError as error:\n    assert type(error).__name__ == 'Gone'\nelse: assert 0"),
         "class Gone(KeyError): pass\ndef f(): raise Gone", "def f(): raise ValueError"),
        (called("assert f(10**3000) == 10**3000 + 1 and f(float('inf')) == float('inf')"),
         "def f(x): return x + 1", "def f(x): return x"),
        (called("import math\nassert math.isnan(f(b'x')) "), "def f(x): return float('nan')", "def f(x): return 0.0"),
        (
            {"entry_point": "Stack", "tests": "s = Stack([1])\ns.push(2)\nassert len(s) == 2 and s.pop() == 2 and 1 in s\n"
             "assert [*s] == [1] and s[0] == 1 and s.size == 1 and str(s) == 'Stack' and s == s and bool(s)\ns.size = 5\n"
             "assert s.size == 5 and isinstance(s, Stack) and not isinstance(3, Stack)\n"
             "with s as t: assert t.pop() == 1\nassert not s"},
            "class Stack:\n def __init__(s, a): s.a = a; s.size = 1\n def push(s, x): s.a.append(x)\n def pop(s): return s.a.pop()\n"
            " def __len__(s): return len(s.a)\n def __iter__(s): return iter(s.a)\n def __contains__(s, x): return x in s.a\n"
            " def __getitem__(s, i): return s.a[i]\n def __str__(s): return 'Stack'\n def __enter__(s): return s\n"
            " def __exit__(s, *a): pass",
            "class Stack(list):\n push = list.append",
        ),
        (
            {"entry_point": "last", "prompt": "class Node:\n    def __init__(self, v, n=None): self.v, self.n = v, n\n",
             "tests": "one = Node(1, Node(2))\nassert last(one).v == 2 and last(one) is not None\nassert type(last(one)) is Node"},
            "def last(node):\n    while node.n: node = node.n\n    return node", "def last(node): return node",
        ),
        (called("import unittest\nclass T(unittest.TestCase):\n    def test_one(self):\n        self.assertEqual(f(1), 1)\n"
                "        with self.assertRaises(ZeroDivisionError): f(0)\n"), "def f(x): return 1 // x", "def f(x): return 1"),
        (called("assert f([1, 2], k=3) == {'k': 3, 'a': (1, 2)} and f({1}, k=None)['a'] == (1,)"),
         "def f(a, *, k): return {'k': k, 'a': tuple(a)}", "def f(a, *, k): return {}"),
        (called("assert f == 3"), "f = 3", "f = 4"),
        (
            {"entry_point": "LRU", "tests": "c = LRU(1)\nc.put(1, 2)\nassert c.get(1) == 2\nc.put(3, 4)\nassert c.get(1) == -1 and len(c) == 1"},
            "from collections import OrderedDict\nclass LRU(OrderedDict):\n def __init__(s, n): s.n = n\n"
            " def get(s, k):\n  if k not in s: return -1\n  s.move_to_end(k)\n  return s[k]\n"
            " def put(s, k, v):\n  s[k] = v\n  if len(s) > s.n: s.popitem(last=False)",
            "class LRU(dict):\n def __init__(s, n): pass\n def get(s, k): return 2\n def put(s, k, v): pass",
        ),
        (called("assert f(3) == 6"), "```\nclass ftest: pass\nhalf = 3\n```\n```\ndef f(x):\n    return 2 * x\n```\nUse:\n```\nhalf = f(3)\nif f == f: pass\n```", "```\nf = 3\n```"),
        (called("assert f(3) == 6"), "def f(x):\n    \"\"\"Doubles.\n\n    ```\n    f(3)\n    ```\n    \"\"\"\n    return 2 * x", "```\nf(3)\n```"),
        (called("assert f(3) == 6", prompt="def f(x):\n"), "\ndef f(x): return 2 * x", "    return x"),
        (
            called("try: f(1)\nexcept Bad as error: assert str(error) == 'no'\nelse: assert 0", prompt="class Bad(Exception): pass\n"),
            "def f(x): raise Bad('no')", "def f(x): raise ValueError('no')",
        ),
        (
            called("assert f(Colour.RED) is Colour.BLUE", prompt="from enum import Enum\nclass Colour(Enum):\n    RED = 1\n    BLUE = 2\n"),
            "def f(c): return Colour.BLUE if c is Colour.RED else c", "def f(c): return c",
        ),
        (
            called("from collections import Counter, defaultdict, OrderedDict\nassert f(Counter('aab')) == 'a'\n"
                   "assert f(OrderedDict(b=1)) == 'b' and f(defaultdict(int, c=1)) == 'c'"),
            "def f(c):\n t = type(c).__name__\n if t == 'Counter': return c.most_common(1)[0][0]\n c.move_to_end('b') if t == 'OrderedDict' else c['d']\n return list(c)[0]",
            "def f(c): return c",
        ),
        (called("assert f(2) == 4", setup="import math"), "def f(x):\n    print('a lot' * 100_000)\n    return x * x", "f = abs"),
        (called("assert f(2) == 4", in_process=True), "def f(x): return x * x", "def f(x): return x"),
        ({"tests": "exec(answer)\nassert f(2) == 4", "in_process": True}, "def f(x): return x * x", "import sys\nsys.exit(0)"),
    ],
)  # fmt: skip
def test_programs_that_the_tests_call(payload: dict[str, Any], right: str, wrong: str) -> None:
    assert (verdict(payload, right).kind, verdict(payload, wrong).kind) == ("passed", "failed"), verdict(payload, right)


def test_programs_that_read_and_print() -> None:
    payload = {"tests": [{"input": "3 4\n", "output": "7"}, {"input": "1 1", "output": "2\n"}]}
    assert score(payload, "```python\nprint(sum(map(int, input().split())))\n```") == 1.0
    assert score(payload, "print(7)") == 0.0
    assert score(payload, "import sys\nsys.exit(0)") == 0.0
    assert score(payload, "print('7')\nraise SystemExit(1)") == 0.0
    assert score({"tests": [{"input": "", "output": "a\nb"}]}, "print('a \\nb\\n')") == 1.0


def test_tests_that_never_call_the_answer_are_broken() -> None:
    assert verdict(called("x = 1"), "def f(): pass").kind == "broken"
    assert verdict(called("def check(candidate): pass"), "def f(): pass").kind == "broken"
    assert verdict(called("raise RuntimeError"), "def f(): pass").kind == "broken"
    assert verdict(called("import sys\nsys.exit(0)"), "def f(): pass").kind == "broken"
    assert verdict({"entry_point": "f", "prompt": "raise KeyError", "tests": "f()"}, "def f(): 1").kind == "broken"


def test_time_is_the_answers_in_the_answer_and_ours_in_the_tests() -> None:
    slow = verdict(called("assert f(2) == 4"), "import time\ndef f(x): time.sleep(60)", wall_s=1.0)
    assert slow == Verdict("failed", "the answer cannot be asked: it used up its time", lasts=False)
    busy = verdict(called("assert f(2) == 4"), "def f(x):\n while 1: pass", wall_s=20.0, cpu_s=1)
    assert (busy.kind, busy.lasts) == ("failed", False)
    for tests in ("f(1)\nwhile True: pass", "f(1)\nwhile True: f(1)", "f(1)\nimport time; time.sleep(600)"):
        with pytest.raises(InfrastructureError, match="row-7 are broken: the tests did not come to an end"):
            score(called(tests), "def f(x): return x", cpu_s=1, wall_s=3.0)


@pytest.mark.parametrize(
    ("tests", "answer"),
    [
        ("assert list(f(2)) == [1]", "def f(x):\n while True: yield 1"),
        ("assert sum(f(3)) == 6", "def f(x): return range(10**15)"),
        ("assert f(2) ** 2 == 16", "def f(x): return (1 << 60_000_000) - 1"),
        ("r = f(2)\nassert r == 4, f'got {r}'", "def f(x):\n l = [0]\n for _ in range(100): l = [l, l]\n return l"),
        ("assert f(lambda x: [0] * x) == 3", "def f(g): return g(10**12)"),
        (
            "assert f(2) == 0.5",
            "from fractions import Fraction as F\nimport random\ndef f(x): return F(random.getrandbits(10**6) | 1, random.getrandbits(10**6) | 1)",
        ),
        ("assert sorted(f(3)) == [1]", "def f(x): return range(10**15)"),
        ("assert [0] * f(2) == [0]", "def f(x): return 10**15"),
        ("try: r = f(2)\nexcept Exception: pass\nassert r == 4", "def f(x): raise ValueError"),
        (
            "def check(x):\n  try: r = f(x)\n  except Exception: pass\n  return r\nassert check(2) == 4",
            "def f(x): raise ValueError",
        ),
        ("open(f(2))", "def f(x): return '/nowhere'"),
        ("__import__(f(2))", "def f(x): return 'nowhere'"),
        ("try: f(2)\nexcept BaseException as e: raise ImportError(str(e))", "def f(x): raise ValueError"),
        ("assert eval(f(2)) == 4", "def f(x): return '4 +'"),
    ],
)
def test_what_an_answer_makes_of_the_tests_is_its_failure(tests: str, answer: str) -> None:
    assert score(called(tests), answer, cpu_s=1, wall_s=4.0) == 0.0


def test_a_text_makes_nothing_of_the_tests_either() -> None:
    tests = "import json\ntry: value = json.loads(answer)['x']\nexcept Exception: pass\nassert value == 1"
    assert score({"tests": tests}, "{") == 0.0 and score({"tests": tests}, '{"x": 1}') == 1.0


def test_what_cannot_be_given_to_any_answer_is_the_tests_fault() -> None:
    with pytest.raises(InfrastructureError, match="the answer cannot be given this: an object of type P"):
        score(called("class P: pass\nassert f(P()) == 1"), "def f(p): return 1")


def test_memory_and_output_of_the_answer_are_its_failure() -> None:
    hungry = verdict(called("assert f(2) == 4"), "def f(x):\n l = []\n while 1: l.append('x' * 10**6)")
    assert hungry.kind == "failed"
    assert verdict(called("assert f(2) == 4"), "def f(x):\n while 1: print('x' * 1000)", wall_s=2.0).kind == "failed"


class Counting(Sandbox):
    """A real sandbox that counts its executions; the first ones end as `troubles` say."""

    def __init__(self, *troubles: Exception | Outcome) -> None:
        super().__init__(LIMITS)
        self.executions = 0
        self._troubles = list(troubles)

    async def run_together(self, programs: Sequence[Program], wall_s: float) -> list[Execution]:
        self.executions += 1
        executions = await super().run_together(programs, wall_s)
        if not self._troubles:
            return executions
        trouble = self._troubles.pop(0)
        if isinstance(trouble, Exception):
            raise trouble
        return [dataclasses.replace(execution, outcome=trouble) for execution in executions]


ROW, OTHER = judged(FORTY_TWO), judged({"tests": "assert answer == '41'"})


def test_a_group_that_agrees_is_judged_by_one_execution() -> None:
    async def check() -> None:
        judge = Judge(sandbox := Counting())
        answers = ["42", "42", "41", "42", None]
        assert await asyncio.gather(*(judge(ROW, a) for a in answers)) == [1.0, 1.0, 0.0, 1.0, 0.0]
        assert await judge(OTHER, "41") == 1.0
        assert sandbox.executions == 3

    asyncio.run(check())


def test_a_verdict_that_a_limit_gave_is_not_kept() -> None:
    """The machine may have stalled, so the next trajectory with the same answer is judged anew."""
    row = judged(called("assert f(2) == 4"))

    async def check() -> None:
        judge = Judge(sandbox := Counting(Outcome.TIMEOUT))
        right = "def f(x): return x * x"
        assert await asyncio.gather(*(judge(row, right) for _ in range(3))) == [1.0] * 3
        assert await judge(row, right) == 1.0 and await judge(row, right) == 1.0
        assert sandbox.executions == 2

    asyncio.run(check())


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), InfrastructureError("gone")])
def test_an_error_is_raised_to_who_waits_for_it_and_forgotten(error: Exception) -> None:
    async def check() -> None:
        judge = Judge(Counting(error))
        waiting = [judge(ROW, "42") for _ in range(3)]
        assert [type(e) for e in await asyncio.gather(*waiting, return_exceptions=True)] == [type(error)] * 3
        assert await judge(ROW, "42") == 1.0

    asyncio.run(check())


def test_a_reference_is_judged_once() -> None:
    async def check() -> None:
        judge = Judge(sandbox := Counting())
        row = judged(FORTY_TWO | {"reference": "42"})
        assert await asyncio.gather(*(judge(row, str(number)) for number in range(5))) == [0.0] * 5
        assert sandbox.executions == 6

    asyncio.run(check())


def test_nothing_is_left_open() -> None:
    import os

    payload = called("assert f(2) == 4")
    verdict(payload, "def f(x): return 4")
    before = len(os.listdir("/proc/self/fd"))
    for answer in ("def f(x): return 4", "def f(", "import os\nos._exit(0)"):
        verdict(payload, answer)
    assert len(os.listdir("/proc/self/fd")) == before


def test_waiting_for_a_slot_is_told_to_who_waits_for_a_verdict() -> None:
    async def check() -> float:
        sandbox = Sandbox(LIMITS.model_copy(update={"concurrency": 1}))
        busy = asyncio.create_task(sandbox.run("import time; time.sleep(0.5)"))
        await asyncio.sleep(0)
        assert await Judge(sandbox)(ROW, "42") == 1.0
        await busy
        return queued_s.get()

    assert asyncio.run(check()) > 0.3
