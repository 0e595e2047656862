"""Code-execution reward: run trusted tests on what the model produced, in the sandbox. 1.0 where they pass, else 0.0.

The model produced a *string*. It reaches the tests as a literal and is never evaluated: whoever judges shares no
process with code of whoever is judged. A pass is a fresh random token that the test program prints after its last line,
so ending early is not a pass.

What this does not cover: tests that evaluate the answer themselves (`eval(answer)`) hand it the verdict, and tests that
are too weak are passed by wrong answers. A sandbox that fails raises InfrastructureError: that is never a score.
"""

from __future__ import annotations

import ast
import asyncio
import secrets
from collections import OrderedDict
from functools import partial

from rewards.contracts import Ending, Reward
from rewards.sandbox.sandbox import Outcome, Sandbox
from rewards.scorers.config import RewardSettings

VERDICTS = 4096

Verdict = tuple[float, Outcome]
"""The score, and how the execution that gave it ended."""


async def code_reward(sandbox: Sandbox, tests: str, answer: str | None) -> float:
    """Run the trusted `tests`, which assert on the variable `answer` (also their standard input). No answer scores 0.

    Whatever goes wrong in the tests (a failed assert, int(answer) on nonsense, a timeout) is the answer's fault.
    Raises ValueError for tests that are not Python, InfrastructureError for a sandbox that fails.
    """
    return 0.0 if answer is None else (await _judge(sandbox, tests, answer))[0]


class CodeReward(Reward):
    """The part `code`: whether the answer passes the program `payload.tests`."""

    parts = ("code",)
    uses_sandbox = True

    def __init__(self, settings: RewardSettings, sandbox: Sandbox) -> None:
        super().__init__(settings, sandbox)
        self._judge = Judge(sandbox)

    async def score(self, ending: Ending) -> dict[str, float]:
        return {"code": await self._judge(str(ending.payload["tests"]), ending.answer)}


class Judge:
    """`code_reward` that executes the same answer to the same tests once: the members of a group often agree.

    For deterministic tests. Keeps the newest VERDICTS that a program reached by itself: one that a limit ended may be
    due to a machine that stalled, and is given only to those who wait for it.
    """

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._verdicts: OrderedDict[tuple[str, str], asyncio.Task[Verdict]] = OrderedDict()

    async def __call__(self, tests: str, answer: str | None) -> float:
        """As `code_reward`. A caller that is cancelled takes nobody else's verdict with it."""
        if answer is None:
            return 0.0
        key = (tests, answer)
        verdict = self._verdicts.get(key)
        if verdict is None:
            verdict = self._verdicts[key] = asyncio.create_task(_judge(self._sandbox, tests, answer))
            verdict.add_done_callback(partial(self._forget_unless_lasting, key))
            while len(self._verdicts) > VERDICTS:
                self._verdicts.popitem(last=False)
        return (await asyncio.shield(verdict))[0]

    def _forget_unless_lasting(self, key: tuple[str, str], verdict: asyncio.Task[Verdict]) -> None:
        failed = verdict.cancelled() or verdict.exception() is not None
        if failed or verdict.result()[1] not in (Outcome.OK, Outcome.FAILED):
            self._verdicts.pop(key, None)


async def _judge(sandbox: Sandbox, tests: str, answer: str) -> Verdict:
    try:
        ast.parse(tests)
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"the tests are not Python: {error}: {tests[:200]!r}") from error
    token = secrets.token_hex(16)
    # ascii(): a Python literal of any text, lone surrogates included.
    program = f"answer = {answer!a}\n{tests}\nprint()\nprint({token!r})\n"
    execution = (await sandbox.run(program, stdin=answer)).raise_for_infrastructure()
    passed = execution.outcome is Outcome.OK and execution.stdout.splitlines()[-1:] == [token]
    return float(passed), execution.outcome
