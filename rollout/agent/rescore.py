"""Stored trajectories, scored again with the rewards that their sources have now. Needs no model and no environment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rewards.contracts import Ending
from rewards.errors import InfrastructureError
from rollout.agent.source import Score, Source
from rollout.store.reading import Stored
from rollout.types import Group, Trajectory

AT_ONCE = 64
"""Trajectories that are scored at the same time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Again:
    """A stored trajectory, and its score now or why there is none."""

    before: Trajectory
    now: Score | None
    failure: str | None = None

    @property
    def changed(self) -> bool:
        """Whether its reward, a part of it or its success is another one."""
        before, now = self.before, self.now
        return now is not None and (now.reward, dict(now.parts), now.success) != (
            before.reward,
            dict(before.reward_parts),
            before.success,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupAgain:
    """A stored group with its usable members, scored again."""

    stored: Stored
    members: tuple[Again, ...]


async def rescore(stored: Iterable[Stored], sources: Mapping[str, Source]) -> AsyncIterator[GroupAgain]:
    """Score the usable members of each group whose source is in `sources`, in order. A failure is told, not scored."""
    places = asyncio.Semaphore(AT_ONCE)

    async def member(group: Group, trajectory: Trajectory) -> Again:
        async with places:
            try:
                ending = ending_of(group, trajectory)
                score = await sources[group.task.source].score_again(ending, trajectory.reward_parts)
            except Exception as error:  # whatever a reward raises
                return Again(before=trajectory, now=None, failure=f"{type(error).__name__}: {error}")
        return Again(before=trajectory, now=score)

    for one in stored:
        if one.group.task.source in sources and one.group.usable:
            members = await asyncio.gather(*(member(one.group, trajectory) for trajectory in one.group.usable))
            yield GroupAgain(stored=one, members=tuple(await _compared(sources[one.group.task.source], one, members)))


async def _compared(source: Source, stored: Stored, members: Sequence[Again]) -> Sequence[Again]:
    """The members with what rewards say that look at the whole group."""
    scores = [member.now for member in members]
    if not source.compares:
        return members
    if None in scores:
        failure = "a reward of the whole group cannot be asked, because another member cannot be scored"
        return [m if m.now is None else replace(m, now=None, failure=failure) for m in members]
    endings = [ending_of(stored.group, member.before) for member in members]
    try:
        found = await source.compare(endings, [score for score in scores if score is not None])
    except Exception as error:  # whatever a reward raises
        return [replace(m, now=None, failure=f"{type(error).__name__}: {error}") for m in members]
    return [
        replace(m, now=None, failure=str(score)) if isinstance(score, Exception) else replace(m, now=score)
        for m, score in zip(members, found, strict=True)
    ]


def ending_of(group: Group, trajectory: Trajectory) -> Ending:
    """The episode as its rewards saw it, but for the environment and its final state, which are not stored."""
    return _StoredEnding(
        answer=answer_of(trajectory),
        task=group.task.id,
        messages=trajectory.messages,
        asked=_asked(group, trajectory),
        payload=group.task.payload,
        metadata=group.task.metadata,
    )


def _asked(group: Group, trajectory: Trajectory) -> int:
    """How many messages opened the conversation: an environment may have added some to those of the task."""
    said = [place for place, message in enumerate(trajectory.messages) if message["role"] == "assistant"]
    turns = len(trajectory.turns)
    return said[-turns] if 0 < turns <= len(said) else len(group.task.messages)


def answer_of(trajectory: Trajectory) -> str | None:
    """The answer as `Episode.act` returned it."""
    said = [message for message in trajectory.messages if message["role"] == "assistant"]
    if not said or trajectory.stop_reason not in ("answered", "environment") or said[-1].get("tool_calls"):
        return None
    return str(said[-1]["content"])


def _not_stored(_: Any) -> Any:
    raise InfrastructureError("it looks at the environment's final state, which is not stored")


class _StoredEnding(Ending):
    __slots__ = ()
    state = property(_not_stored, lambda *_: None)
