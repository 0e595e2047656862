"""What a reward is given, and what it is.

A reward knows no environment and no token: it looks at plain values. It raises `rewards.errors.InfrastructureError` for
what the policy is not to blame for; that is never turned into a number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rewards.sandbox.sandbox import Sandbox
from rewards.scorers.config import RewardSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """A finished episode as plain JSON values.

    `answer` is the text of the last turn, None when the model gave none. `messages` are all that was said, in OpenAI
    form. `payload` and `metadata` are the task's. `state` is what the environment was left in, None where it has none.
    """

    answer: str | None
    messages: Sequence[Mapping[str, Any]] = ()
    payload: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    state: Any = None


class Reward:
    """Scores endings; meant to be derived from. One serves all tasks of a source in a worker."""

    parts: tuple[str, ...] = ()
    """The names of the parts that `score` returns: what weights and success rules may name."""
    uses_sandbox: bool = False
    """Whether it needs a sandbox that isolates."""

    def __init__(self, settings: RewardSettings, sandbox: Sandbox) -> None:
        self.settings = settings
        self.sandbox = sandbox

    async def score(self, ending: Ending) -> Mapping[str, float]:
        """Reward parts by name, any finite numbers."""
        raise NotImplementedError
