"""The agent loop: one attempt at a task becomes a trajectory, `group_size` attempts become a group.

    open ─▶ generate ─▶ parse ─▶ call tools, or reply ─▶ bridge ─▶ generate …   ─▶ score
            (engine)             (environment)                                    (environment, rewards)

Every token enters a `TokenStream` once, as shown or as sampled. Failures are attributed here. What the policy caused is
scored. Anything that an engine, environment or reward raises is retried with a fresh episode; when no try is left, the
trajectory becomes an infra_error. No exception but a cancellation leaves these functions.
`lost` is what remains of a group that cannot be stored.

A trajectory must stop acting `trajectory_timeout_s` after its first try began; later tries get no new deadline. The
policy is to blame for passing the deadline if this try's tool calls together took at least half of that time and no
single call did. Then the trajectory is truncated, and scored without an answer. Otherwise the machine is to blame (a
slow engine, a stalled tool, an earlier try that failed, the queue for the sandbox), and the trajectory becomes an
infra_error. Scoring has as much time again.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

from rewards.errors import one_line
from rollout.agent.compare import compared
from rollout.agent.episode import Agent, Episode
from rollout.agent.source import Source
from rollout.contracts import Environment, Superseded
from rollout.types import Group, Outcome, StopReason, Task, Trajectory

log = logging.getLogger(__name__)

CLOSE_S = 10.0
ERROR_CHARACTERS = 10_000
"""The most of an error's text that is kept."""
TRUNCATED: frozenset[StopReason] = frozenset({"turn_limit", "token_limit", "time_limit"})


async def run_group(agent: Agent, source: Source, task: Task, group_id: str) -> Group:
    """Run `group_size` attempts at `task` at the same time. Raise nothing but a cancellation."""
    async with asyncio.TaskGroup() as members:
        running = [
            members.create_task(run_agent(agent, source, task, group_id, f"{group_id}/{member}"))
            for member in range(agent.config.group_size)
        ]
    group = Group(id=group_id, task=task, trajectories=tuple(member.result() for member in running))
    return await compared(group, source, agent.config) if source.compares else group


async def run_agent(agent: Agent, source: Source, task: Task, group_id: str, request_id: str) -> Trajectory:
    """Run one trajectory. After an infrastructure failure it starts over, at most `infra_retries` times; and whenever
    the engine has given up one of its requests in favour of newer weights, which is no failure.

    `request_id` is unique in the run; each try and turn derives its own id and sampling seed from it. Raises nothing
    but a cancellation, which reaches the caller after the environment is closed.
    """
    deadline = asyncio.get_running_loop().time() + agent.config.trajectory_timeout_s
    failures: list[str] = []
    superseded = 0
    while len(failures) <= agent.config.infra_retries:
        episode = Episode(agent, task, f"{request_id}/{len(failures) + superseded}")
        try:
            trajectory = await _attempt(episode, source, group_id, deadline)
            return replace(trajectory, metrics={**trajectory.metrics, **_tries(len(failures), superseded)})
        except Superseded as error:
            superseded += 1
            last = str(error)
        except Exception as error:  # the edge of a rollout: every error is kept as text
            last = one_line(f"try {len(failures) + 1}: {type(error).__name__}: {error}", ERROR_CHARACTERS)
            failures.append(last)
            log.warning("trajectory %s: %s", request_id, last, exc_info=error)
        if asyncio.get_running_loop().time() >= deadline:
            break
    return Trajectory(
        task_id=task.id,
        group_id=group_id,
        samples=(),
        messages=tuple(episode.messages),
        stop_reason="aborted",
        outcome="infra_error",
        reward=None,
        error="; ".join(failures or [last]),
        spans=tuple(episode.spans),
        metrics=episode.metrics() | _tries(max(0, len(failures) - 1), superseded),
    )


def _tries(retries: int, superseded: int) -> dict[str, float]:
    """How often a trajectory was started over: after failures, and for newer weights."""
    return {"infra_retries": float(retries), "superseded": float(superseded)}


def lost(group: Group, error: Exception) -> Group:
    """The group without anything that a policy, an environment or a reward made: its members are infra_errors."""
    task = Task(id=group.task.id, environment=group.task.environment, source=group.task.source, messages=())
    failure = one_line(f"the group cannot be stored: {type(error).__name__}: {error}", ERROR_CHARACTERS)
    members = [
        Trajectory(
            task_id=task.id,
            group_id=group.id,
            samples=(),
            messages=(),
            stop_reason="aborted",
            outcome="infra_error",
            reward=None,
            error=failure,
        )
        for _ in group.trajectories
    ]
    return Group(id=group.id, task=task, trajectories=tuple(members))


async def _attempt(episode: Episode, source: Source, group_id: str, deadline: float) -> Trajectory:
    """Act and score once, in a fresh environment."""
    environment = source.make(episode.task)
    try:
        stop_reason, answer = await episode.act(environment, deadline)
        score = await episode.score(environment, source, answer)
    finally:
        await _close(environment)
    outcome: Outcome = "truncated" if stop_reason in TRUNCATED else "scored"
    return Trajectory(
        task_id=episode.task.id,
        group_id=group_id,
        samples=tuple(stream.finish() for stream in episode.streams),
        messages=tuple(episode.messages),
        stop_reason=stop_reason,
        outcome=outcome,
        reward=score.reward,
        success=score.success,
        reward_parts=score.parts,
        turns=tuple(episode.turns),
        spans=tuple(episode.spans),
        metrics=episode.metrics() | dict(score.metrics),
    )


async def _close(environment: Environment) -> None:
    """Log a failing `close` instead of raising it: the trajectory stays valid, and a cancellation under way is not
    replaced."""
    try:
        async with asyncio.timeout(CLOSE_S):
            await environment.close()
    except Exception:
        log.exception("environment %s did not close", type(environment).__name__)
