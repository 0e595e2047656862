"""Code-execution reward: run trusted tests on the model's answer, in the sandbox. 1.0 if they pass, else 0.0.

The answer is a *string*. It reaches the tests as a literal and is never evaluated, so the tests run in a process in
which no code of the model runs. After its last line the test program prints a fresh random token. Only that token
counts as a pass, so a program that ends early does not pass.

Not covered: tests that evaluate the answer themselves (`eval(answer)`) let it decide the verdict, and wrong answers
pass tests that are too weak. A failure of the sandbox raises InfrastructureError and is never a score.
"""

from __future__ import annotations

import asyncio
import secrets
import warnings
from collections import OrderedDict
from functools import partial

from rewards.contracts import Ending, Reward
from rewards.sandbox.sandbox import Outcome, Sandbox
from rewards.scorers.config import RewardSettings

VERDICTS = 4096

Verdict = tuple[float, Outcome]
"""The score, and the outcome of the execution that gave it."""


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
    """Scores answers by tests. The same answer to the same tests is executed once, as members of a group often agree.

    The tests must be deterministic. The newest VERDICTS verdicts are kept. If a limit ended the program, its verdict
    goes only to the callers that wait for it and is not kept, because a stalled machine may be the cause.
    """

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._verdicts: OrderedDict[tuple[str, str], asyncio.Task[Verdict]] = OrderedDict()

    async def __call__(self, tests: str, answer: str | None) -> float:
        """Run the trusted `tests`, which assert on the variable `answer` (also their standard input).

        No answer scores 0. Any failure in the tests (a failed assert, int(answer) on nonsense, a timeout) counts
        against the answer. If one caller is cancelled, the others still get their verdict.

        Raises:
            ValueError: the tests are not Python.
            InfrastructureError: the sandbox failed.
        """
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


def check_program(tests: str) -> None:
    """Raise ValueError unless `tests` are a program."""
    try:
        with warnings.catch_warnings(action="ignore"):
            compile(tests, "<tests>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError) as error:
        raise ValueError(f"the tests are not Python: {str(error)[:200]}: {tests[:200]!r}") from None


async def _judge(sandbox: Sandbox, tests: str, answer: str) -> Verdict:
    check_program(tests)
    token = secrets.token_hex(16)
    # !a (ascii) makes a Python literal of any text, including lone surrogates.
    program = f"answer = {answer!a}\n{tests}\nprint()\nprint({token!r})\n"
    execution = (await sandbox.run(program, stdin=answer)).raise_for_infrastructure()
    passed = execution.outcome is Outcome.OK and execution.stdout.splitlines()[-1:] == [token]
    return float(passed), execution.outcome
