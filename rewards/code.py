"""Code-execution reward: run tests on what the model produced, in the sandbox. 1.0 where they pass, else 0.0.

Whoever judges never shares a process with whoever is judged:
- `code_reward`: the model produced a *string*. It reaches the trusted tests as a literal and is never evaluated.
- `solution_reward`: the model produced *code*. One execution runs it and may only write JSON; another, in which none of
  it runs, holds the expected values and judges that JSON. The solution sees its inputs, never the tests.
A pass is a fresh random token that the test program prints after its last line, so ending early is not a pass.

What this does not cover: tests that evaluate the answer themselves (`eval(answer)`) hand it the verdict, and tests that
are too weak are passed by wrong answers. A sandbox that fails raises InfrastructureError: that is never a score.
"""

from __future__ import annotations

import ast
import asyncio
import json
import secrets
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from rewards.errors import InfrastructureError
from rewards.sandbox import Outcome, Sandbox

VERDICTS = 4096

_CALLS = """
import json, sys
_results = [{entry}(*arguments) for arguments in json.loads({inputs})]
print()
print(json.dumps(_results))
"""


async def code_reward(sandbox: Sandbox, tests: str, answer: str | None) -> float:
    """Run the trusted `tests`, which assert on the variable `answer` (also their standard input). No answer scores 0.

    Whatever goes wrong in the tests (a failed assert, int(answer) on nonsense, a timeout) is the answer's fault.
    Raises ValueError for tests that are not Python, InfrastructureError for a sandbox that fails.
    """
    if answer is None:
        return 0.0
    # ascii(): a Python literal of any text, lone surrogates included.
    return await _passes(sandbox, f"answer = {answer!a}", tests, stdin=answer)


class CodeReward:
    """`code_reward` that executes the same answer to the same tests once: the members of a group often agree.

    For deterministic tests. Keeps the newest VERDICTS; a sandbox failure is not kept.
    """

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._verdicts: OrderedDict[tuple[str, str | None], asyncio.Task[float]] = OrderedDict()

    async def __call__(self, tests: str, answer: str | None) -> float:
        """As `code_reward`. A caller that is cancelled takes nobody else's verdict with it."""
        key = (tests, answer)
        verdict = self._verdicts.get(key)
        if verdict is None:
            verdict = asyncio.ensure_future(code_reward(self._sandbox, tests, answer))
            self._verdicts[key] = verdict
            while len(self._verdicts) > VERDICTS:
                self._verdicts.popitem(last=False)
        try:
            return await asyncio.shield(verdict)
        except (InfrastructureError, ValueError):
            self._verdicts.pop(key, None)
            raise


async def solution_reward(
    sandbox: Sandbox, solution: str, *, entry: str, inputs: Sequence[Sequence[Any]], tests: str
) -> float:
    """Call the function `entry` of untrusted `solution` code once for each argument list of `inputs`, then run the
    trusted `tests`, which assert on the list `results` of what it returned.

    Arguments and results travel as JSON: a tuple arrives as a list. A solution that raises, returns something that is
    not JSON, or breaks a limit scores 0. Raises ValueError for tests that are not Python or an `entry` that is no name,
    InfrastructureError for a sandbox that fails.
    """
    if not entry.isidentifier():
        raise ValueError(f"entry must be the name of a function, not {entry!r}")
    calls = _CALLS.format(entry=entry, inputs=ascii(json.dumps([list(arguments) for arguments in inputs])))
    execution = (await sandbox.run(f"{solution}\n{calls}")).raise_for_infrastructure()
    lines = execution.stdout.splitlines()
    if execution.outcome is not Outcome.OK or not lines:
        return 0.0
    try:
        results = json.loads(lines[-1])
    except (ValueError, RecursionError):
        return 0.0
    if not isinstance(results, list) or len(results) != len(inputs):
        return 0.0
    return await _passes(sandbox, f"import json\nresults = json.loads({lines[-1]!a})", tests, stdin="")


async def _passes(sandbox: Sandbox, given: str, tests: str, *, stdin: str) -> float:
    try:
        ast.parse(tests)
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"the tests are not Python: {error}: {tests[:200]!r}") from error
    token = secrets.token_hex(16)
    program = f"{given}\n{tests}\nprint()\nprint({token!r})\n"
    execution = (await sandbox.run(program, stdin=stdin)).raise_for_infrastructure()
    passed = execution.outcome is Outcome.OK and execution.stdout.splitlines()[-1:] == [token]
    return float(passed)
