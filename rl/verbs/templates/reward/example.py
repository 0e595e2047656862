"""Reward: 1 for an answer of at most `length` characters, and the less, the longer it is.

A reward sees a finished episode as plain values (rewards/contracts.py): the answer, the messages, the task's payload,
the environment's final state. It returns named parts, any finite numbers. A task source adds them up; its `weights` and
`success` refer to the names. Raise rewards.errors.InfrastructureError for what the policy did not cause (a service that
does not answer, say): the attempt is then repeated. Never turn that into a 0, which would teach the policy something.
"""

from pydantic import Field

from rewards.contracts import Ending, Reward
from rewards.scorers.config import RewardSettings


class Example(Reward):
    """One instance scores all the episodes of a task source in one process, many of them at the same time."""

    parts = ("example",)
    """The names of what `score` returns. Set `uses_sandbox = True` to run code with `self.sandbox`."""

    class Settings(RewardSettings):
        length: int = Field(default=20, ge=1)
        """Number of characters up to which an answer gets the whole reward."""

    async def score(self, ending: Ending) -> dict[str, float]:
        """Return the part `example`. Without an answer it is 0, or silence would be the shortest one."""
        if not ending.answer:
            return {"example": 0.0}
        return {"example": min(1.0, self.settings.length / len(ending.answer))}
