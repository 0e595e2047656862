"""Rewards that look at all attempts at a task: they are asked when the last attempt has ended."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

from rewards.errors import InfrastructureError, one_line
from rollout.agent.config import RolloutConfig
from rollout.agent.rescore import ending_of
from rollout.agent.source import Score, Source
from rollout.clock import now
from rollout.types import Group, Span, Trajectory

log = logging.getLogger(__name__)

_CHARACTERS = 10_000


async def compared(group: Group, source: Source, config: RolloutConfig) -> Group:
    """The group with its final scores. Where a reward fails, it is asked again, at most `infra_retries` times; then all
    members become infrastructure failures, because none of them has its whole reward. Raises nothing but a
    cancellation."""
    members = group.usable
    if not members:
        return group
    endings = [ending_of(group, member) for member in members]
    scores = [_score_of(member) for member in members]
    start, found, failures = now(), list[Score | InfrastructureError](), list[str]()
    while not found and len(failures) <= config.infra_retries:
        try:
            async with asyncio.timeout(config.trajectory_timeout_s):
                found = await source.compare(endings, scores)
        except Exception as error:  # whatever a reward raises
            failures.append(one_line(f"try {len(failures) + 1}: {type(error).__name__}: {error}", _CHARACTERS))
            log.warning("group %s: %s", group.id, failures[-1], exc_info=error)
    span = Span(name="reward", start=start, end=now())
    final = iter(found or [InfrastructureError("; ".join(failures))] * len(members))
    return replace(
        group,
        trajectories=tuple(
            member if member.outcome == "infra_error" else _final(member, next(final), span)
            for member in group.trajectories
        ),
    )


def _score_of(member: Trajectory) -> Score:
    """What the rewards said that look at one attempt at a time."""
    assert member.reward is not None and member.success is not None
    said = {name: value for name, value in member.metrics.items() if name.startswith("reward/")}
    return Score(reward=member.reward, parts=member.reward_parts, success=member.success, metrics=said)


def _final(member: Trajectory, score: Score | InfrastructureError, span: Span) -> Trajectory:
    spent = member.metrics.get("reward_s", 0.0) + span.end - span.start
    metrics, spans = {**member.metrics, "reward_s": spent}, (*member.spans, span)
    if isinstance(score, InfrastructureError):
        return replace(
            member,
            outcome="infra_error",
            reward=None,
            success=None,
            reward_parts={},
            error=str(score),
            spans=spans,
            metrics=metrics,
        )
    return replace(
        member,
        reward=score.reward,
        success=score.success,
        reward_parts=score.parts,
        spans=spans,
        metrics=metrics | dict(score.metrics),
    )
