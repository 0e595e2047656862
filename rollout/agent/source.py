"""A task source in a rollout worker: it makes episodes of its tasks, and scores those that have ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rewards.compose import compose, succeeded
from rewards.contracts import Ending, Reward
from rewards.extension import make
from rewards.sandbox.sandbox import Sandbox
from rewards.scorers.registry import ENVIRONMENT, REWARDS
from rollout.contracts import Environment
from rollout.envs.registry import make_environment
from rollout.tasks.config import TaskSource
from rollout.types import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """The total reward, its parts by name, and whether the source's rule calls it a success."""

    reward: float
    parts: Mapping[str, float]
    success: bool


class Source:
    """See the module's docstring. One object serves all tasks of its source in a worker."""

    def __init__(self, config: TaskSource, sandbox: Sandbox) -> None:
        """Raises ValueError for an environment or a reward that cannot be imported or made."""
        self.label = config.label
        self._config = config
        self._sandbox = sandbox
        self._spec = make_environment(config.environment)
        chosen = [reward for reward in config.rewards if reward.name != ENVIRONMENT]
        self._own = len(config.rewards) - len(chosen)
        self._rewards: list[Reward] = [make(REWARDS, reward.name, reward, sandbox) for reward in chosen]

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of all reward parts, the environment's first. A name that two rewards give is listed twice."""
        own = self._spec.reward_parts * self._own
        return (*own, *(part for reward in self._rewards for part in reward.parts))

    @property
    def uses_sandbox(self) -> bool:
        """Whether the environment or a reward needs a sandbox that isolates."""
        return self._spec.uses_sandbox or any(reward.uses_sandbox for reward in self._rewards)

    def make(self, task: Task) -> Environment:
        """Make an episode of `task`."""
        return self._spec.make(task, self._sandbox)

    async def score(self, environment: Environment, ending: Ending) -> Score:
        """Score an episode that has ended.

        Raises:
            ValueError: a part is missing, not named by `parts`, or not a finite number.
        """
        parts = dict(await environment.score(ending.answer)) if self._own else {}
        for reward in self._rewards:
            parts |= await reward.score(ending)
        if set(parts) != set(self.parts):
            raise ValueError(f"source {self.label!r} has rewards {sorted(parts)}, and announced {sorted(self.parts)}")
        total = float(compose(parts, self._config.weights))
        parts = {name: float(value) for name, value in parts.items()}  # NumPy's numbers cannot be stored
        return Score(reward=total, parts=parts, success=succeeded(total, parts, self._config.success))


def make_sources(configs: Sequence[TaskSource], sandbox: Sandbox) -> dict[str, Source]:
    """Return the sources of a recipe by their labels."""
    return {config.label: Source(config, sandbox) for config in configs}
