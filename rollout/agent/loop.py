"""The agent loop: one attempt at a task becomes a trajectory, `group_size` attempts become a group.

    open ─▶ generate ─▶ parse ─▶ call tools ─▶ bridge ─▶ generate …   ─▶ score
            (engine)             (environment)                          (environment)

Every token enters the `TokenStream` once, as shown or as sampled. Failures are attributed here: what the policy caused
is scored, anything an engine, environment or scorer raises is retried with a fresh episode and then becomes an
infra_error; nothing but a cancellation leaves these functions as an exception.

The deadline `trajectory_timeout_s` covers the acting of all tries together. When it passes after this try's tool calls
took half of it or more, none of them that much alone, the policy spent the time: truncated, and scored without an
answer. Else the machine did (a slow engine, a stalled tool, an earlier try that failed, the queue for the sandbox):
infra_error. Scoring has as much time again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from rewards.compose import compose
from rewards.sandbox.sandbox import Sandbox
from rollout.agent.config import RolloutConfig
from rollout.agent.episode import Episode
from rollout.contracts import Chat, Engine, Environment
from rollout.envs.registry import ENVIRONMENTS
from rollout.types import Group, Outcome, StopReason, Task, Trajectory

log = logging.getLogger(__name__)

CLOSE_S = 10.0
TRUNCATED: frozenset[StopReason] = frozenset({"turn_limit", "token_limit", "time_limit"})


async def run_group(
    task: Task,
    chat: Chat,
    engine: Engine,
    sandbox: Sandbox,
    config: RolloutConfig,
    *,
    group_id: str,
    seed: int,
    reward_weights: Mapping[str, float],
) -> Group:
    """Run `config.group_size` attempts at `task` at the same time. `seed` is the run's.

    Raises ValueError for a task of an unknown environment; nothing else but a cancellation.
    """
    if task.environment not in ENVIRONMENTS:
        raise ValueError(f"task {task.id}: no environment {task.environment!r}; there are {sorted(ENVIRONMENTS)}")
    spec = ENVIRONMENTS[task.environment]
    async with asyncio.TaskGroup() as members:
        running = [
            members.create_task(
                run_agent(
                    task,
                    lambda: spec.make(task, sandbox),
                    chat,
                    engine,
                    config,
                    group_id=group_id,
                    request_id=f"{group_id}/{member}",
                    seed=seed,
                    reward_weights=reward_weights,
                )
            )
            for member in range(config.group_size)
        ]
    return Group(id=group_id, task=task, trajectories=tuple(member.result() for member in running))


async def run_agent(
    task: Task,
    make_environment: Callable[[], Environment],
    chat: Chat,
    engine: Engine,
    config: RolloutConfig,
    *,
    group_id: str,
    request_id: str,
    seed: int,
    reward_weights: Mapping[str, float],
) -> Trajectory:
    """One trajectory. After an infrastructure failure it starts over, `config.infra_retries` times.

    `request_id` is unique in the run; each try and turn derives its own id and sampling seed from it. Never raises but
    for a cancellation, which reaches the caller after the environment is closed.
    """
    deadline = asyncio.get_running_loop().time() + config.trajectory_timeout_s
    failures: list[str] = []
    for attempt in range(config.infra_retries + 1):
        episode = Episode(task, chat, engine, config, f"{request_id}/{attempt}", seed)
        try:
            return await _attempt(episode, make_environment, group_id, reward_weights, deadline, attempt)
        except Exception as error:  # the edge of a rollout: attributed, counted, kept as text
            failures.append(f"try {attempt + 1}: {type(error).__name__}: {error}")
            log.warning("trajectory %s: %s", request_id, failures[-1], exc_info=error)
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
        error="; ".join(failures),
        spans=tuple(episode.spans),
        metrics=episode.metrics(attempt),
    )


async def _attempt(
    episode: Episode,
    make_environment: Callable[[], Environment],
    group_id: str,
    reward_weights: Mapping[str, float],
    deadline: float,
    attempt: int,
) -> Trajectory:
    """Act and score once, with an environment of its own."""
    environment = make_environment()
    try:
        stop_reason, answer = await episode.act(environment, deadline)
        parts = await episode.score(environment, answer)
        reward = compose(parts, reward_weights)
    finally:
        await _close(environment)
    outcome: Outcome = "truncated" if stop_reason in TRUNCATED else "scored"
    return Trajectory(
        task_id=episode.task.id,
        group_id=group_id,
        samples=(episode.stream.finish(),),
        messages=tuple(episode.messages),
        stop_reason=stop_reason,
        outcome=outcome,
        reward=reward,
        reward_parts=parts,
        spans=tuple(episode.spans),
        metrics=episode.metrics(attempt),
    )


async def _close(environment: Environment) -> None:
    """A close that fails spoils no trajectory, and must not take the place of a cancellation under way."""
    try:
        async with asyncio.timeout(CLOSE_S):
            await environment.close()
    except Exception:
        log.exception("environment %s did not close", type(environment).__name__)
