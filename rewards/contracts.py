"""The base class of rewards, and the finished episode that a reward scores.

A reward knows no environment and no token: it looks at plain values. It raises `rewards.errors.InfrastructureError` for
failures that the policy did not cause. They are never turned into a number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rewards.host.host import Host
from rewards.sandbox.sandbox import Sandbox
from rewards.scorers.config import RewardSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """A finished episode as plain JSON values.

    `answer` is the text of the last turn, None when the model gave none. `task` is the task's id, `payload` and
    `metadata` are the task's, too. `messages` is the whole conversation in OpenAI form, of which the first `asked` are
    the prompt. `state` is the environment's final state, None if it has none.
    """

    answer: str | None
    task: str = ""
    messages: Sequence[Mapping[str, Any]] = ()
    asked: int = 0
    payload: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    state: Any = None
    hosted: Hosted | None = None
    """Where the environment lives, if it is plain Python."""


@dataclass(frozen=True, slots=True)
class Hosted:
    """An object in another process: the process, and the object's name there."""

    host: Host
    key: str


@dataclass(frozen=True, slots=True)
class Scored:
    """Reward parts by name, and what else a reward measured."""

    parts: Mapping[str, float]
    metrics: Mapping[str, float] = field(default_factory=dict)


class Reward:
    """Scores finished episodes; derive from it. One instance serves all tasks of a task source in one worker."""

    parts: tuple[str, ...] = ()
    """The names of the parts that `score` returns. Weights and success rules may use them."""
    uses_sandbox: bool = False
    """Whether `score` needs a sandbox that isolates."""
    may_abstain: bool = False
    """Whether `score` may leave parts out, which then do not apply to the episode."""

    def __init__(self, settings: RewardSettings, sandbox: Sandbox) -> None:
        self.settings = settings
        self.sandbox = sandbox

    async def score(self, ending: Ending) -> Mapping[str, float] | Scored:
        """Return the reward parts by name. They may be any finite numbers."""
        raise NotImplementedError

    whole_group: bool = False
    """Whether `score_group` is asked instead of `score`, once for all attempts at a task."""

    async def score_group(self, endings: Sequence[Ending]) -> Sequence[Mapping[str, float] | Scored]:
        """Return the reward parts of each attempt at a task, in order. Their environments are gone by then, so their
        states cannot be looked at. Attempts that infrastructure failures ended are not among them."""
        raise NotImplementedError

    async def close(self) -> None:
        """Release what scoring has taken up."""
