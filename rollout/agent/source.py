"""A task source in a rollout worker: it makes episodes of its tasks, and scores those that have ended."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rewards.compose import compose, succeeded
from rewards.contracts import Ending, Reward, Scored
from rewards.errors import InfrastructureError
from rewards.extension import make
from rewards.sandbox.sandbox import Sandbox
from rewards.scorers.registry import ENVIRONMENT, REWARDS
from rollout.contracts import Environment
from rollout.envs.registry import make_environment
from rollout.tasks.config import TaskSource
from rollout.types import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """The total reward, its parts by name, whether the source's rule calls it a success, and what rewards measured."""

    reward: float
    parts: Mapping[str, float]
    success: bool
    metrics: Mapping[str, float] = field(default_factory=dict)


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
        rewards: list[Reward] = [make(REWARDS, reward.adapter or reward.name, reward, sandbox) for reward in chosen]
        self._rewards = [reward for reward in rewards if not reward.whole_group]
        self._comparing = [reward for reward in rewards if reward.whole_group]

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of all reward parts, the environment's first. A name that two rewards give is listed twice."""
        own = self._spec.reward_parts * self._own
        return (*own, *(part for reward in (*self._rewards, *self._comparing) for part in reward.parts))

    @property
    def uses_sandbox(self) -> bool:
        """Whether the environment or a reward needs a sandbox that isolates."""
        return self._spec.uses_sandbox or any(reward.uses_sandbox for reward in (*self._rewards, *self._comparing))

    @property
    def compares(self) -> bool:
        """Whether there are rewards that look at a whole group: scores are final after `compare` only."""
        return bool(self._comparing)

    def make(self, task: Task) -> Environment:
        """Make an episode of `task`."""
        return self._spec.make(task, self._sandbox)

    async def score(self, environment: Environment, ending: Ending) -> Score:
        """Score an episode that has ended.

        Raises:
            ValueError: a part is missing, not named by `parts`, or not a finite number.
            InfrastructureError: no reward applies to the episode.
        """
        parts = dict(await environment.score(ending.answer)) if self._own else {}
        self._check(parts, self._spec.reward_parts * self._own, self._spec.may_abstain)
        return await self._total(parts, ending)

    async def compare(self, endings: Sequence[Ending], scores: Sequence[Score]) -> list[Score | InfrastructureError]:
        """Complete the scores of the members of a group with what the rewards say that look at all of them. In the
        place of a score stands an error where no reward applies to the member. Raises what `score` raises."""
        found = [(dict(score.parts), dict(score.metrics)) for score in scores]
        for reward in self._comparing:
            for (parts, metrics), scored in zip(found, await reward.score_group(endings), strict=True):
                self._add(reward, scored, parts, metrics)
        return [
            self._composed(parts, metrics) if parts else self._inapplicable(ending)
            for (parts, metrics), ending in zip(found, endings, strict=True)
        ]

    @property
    def kept_parts(self) -> tuple[str, ...]:
        """The parts that `score_again` keeps."""
        return self._spec.reward_parts * bool(self._own)

    async def score_again(self, ending: Ending, before: Mapping[str, float]) -> Score:
        """Score an episode whose environment is gone. The parts that the environment gave are kept from `before`.
        Raises what `score` raises."""
        return await self._total({name: before[name] for name in self.kept_parts if name in before}, ending)

    def vote(self, answer: str | None) -> str | None:
        """A key of what an answer says, equal for answers that say the same; None for none."""
        said = None if answer is None else self._spec.vote(answer)
        return None if said is None else hashlib.sha256(said.encode(errors="surrogatepass")).hexdigest()[:16]

    async def close(self) -> None:
        """End the processes of the rewards. They also end by themselves when this process does."""
        for reward in (*self._rewards, *self._comparing):
            await reward.close()

    async def _total(self, parts: dict[str, float], ending: Ending) -> Score:
        metrics: dict[str, float] = {}
        for reward, found in zip(self._rewards, await self._scores(ending), strict=True):
            self._add(reward, found, parts, metrics)
        if not parts and not self._comparing:
            raise self._inapplicable(ending)
        return self._composed(parts, metrics)

    def _add(
        self, reward: Reward, found: Mapping[str, float] | Scored, parts: dict[str, float], metrics: dict[str, float]
    ) -> None:
        scored = found if isinstance(found, Scored) else Scored(found)
        self._check(scored.parts, reward.parts, reward.may_abstain)
        parts |= scored.parts
        for name, value in scored.metrics.items():  # two judges both have costs
            metrics[f"reward/{name}"] = metrics.get(f"reward/{name}", 0.0) + value

    def _composed(self, parts: Mapping[str, float], metrics: Mapping[str, float]) -> Score:
        total = float(compose(parts, self._config.weights))
        parts = {name: float(value) for name, value in parts.items()}  # NumPy's numbers cannot be stored
        success = succeeded(total, parts, self._config.success)
        return Score(reward=total, parts=parts, success=success, metrics=metrics)

    def _inapplicable(self, ending: Ending) -> InfrastructureError:
        return InfrastructureError(f"none of the rewards {', '.join(self.parts)} applies to task {ending.task}")

    async def _scores(self, ending: Ending) -> Sequence[Mapping[str, float] | Scored]:
        """What each reward says. They look at the episode at the same time; the first failure ends the others."""
        if not self._rewards:
            return []
        if len(self._rewards) == 1:
            return [await self._rewards[0].score(ending)]
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(_scored(reward, ending)) for reward in self._rewards]
        except* Exception as errors:
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    def _check(self, found: Mapping[str, float], announced: Sequence[str], may_abstain: bool) -> None:
        if not set(found) <= set(announced) or not (may_abstain or set(found) == set(announced)):
            raise ValueError(f"source {self.label!r} has rewards {sorted(found)}, and announced {sorted(announced)}")


async def _scored(reward: Reward, ending: Ending) -> Mapping[str, float] | Scored:
    return await reward.score(ending)


def make_sources(configs: Sequence[TaskSource], sandbox: Sandbox, workers: int = 1) -> dict[str, Source]:
    """Return the sources of a recipe by their labels, for one of so many workers."""
    shared = [
        config.model_copy(update={"rewards": tuple(reward.shared_by(workers) for reward in config.rewards)})
        for config in configs
    ]
    return {config.label: Source(config, sandbox) for config in shared}
