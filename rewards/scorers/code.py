"""Reward `code`: whether an answer passes the tests of its task.

An answer that makes the tests fail, loop or exceed a limit scores 0. A sandbox that fails raises an error, and so do
tests that are broken: the answer is then not scored.
"""

from __future__ import annotations

from rewards.contracts import Ending, Reward
from rewards.judge.judge import Judge
from rewards.judge.rows import judged
from rewards.sandbox.sandbox import Sandbox
from rewards.scorers.config import RewardSettings


class CodeReward(Reward):
    """The part `code`: whether the answer passes the tests in the payload (`rewards.judge.rows.Judged`)."""

    parts = ("code",)
    uses_sandbox = True

    def __init__(self, settings: RewardSettings, sandbox: Sandbox) -> None:
        super().__init__(settings, sandbox)
        self._judge = Judge(sandbox)

    async def score(self, ending: Ending) -> dict[str, float]:
        return {"code": await self._judge(judged(ending.payload), ending.answer, ending.task)}
