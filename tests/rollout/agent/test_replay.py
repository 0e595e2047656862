"""The agent loop over GLM-4.5's chat, both environments and bubblewrap; only the engine is not real. It replays oracle
demonstrations token by token, and the trajectory's sample must have the demonstration's tokens and mask."""

from __future__ import annotations

import asyncio
import random
from itertools import groupby

import pytest

from rewards.sandbox.config import SandboxConfig
from rewards.sandbox.sandbox import Sandbox
from rollout.agent.config import RolloutConfig, SamplingConfig
from rollout.agent.episode import Agent
from rollout.agent.loop import run_group
from rollout.chat.demonstrations import render_demonstration
from rollout.types import Completion, SamplingParams, Trajectory
from tests.support import environment, glm45, source

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


class Replay:
    """An engine that samples the tokens that a demonstration's mask marks, whatever the prompt. So a wrong prompt shows
    in the sample."""

    def __init__(self, ids: list[int], mask: list[int]) -> None:
        runs = groupby(zip(ids, mask, strict=True), key=lambda pair: pair[1])
        self._spoken = [tuple(token for token, _ in run) for trained, run in runs if trained]

    async def generate(self, request_id: str, prompt_token_ids: list[int], sampling: SamplingParams) -> Completion:
        ids = self._spoken[int(request_id.split("/")[-1])]
        assert ids[-1] in sampling.stop_token_ids
        return Completion(token_ids=ids, logprobs=(-1.0,) * len(ids), versions=(4,) * len(ids), finish_reason="stop")


@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize("name", ["python", "store"])  # whose oracles are noisy
def test_a_replayed_demonstration_is_its_own_sample(name: str, thinking: bool) -> None:
    spec, sandbox, rng = environment(name), Sandbox(SandboxConfig(wall_s=30)), random.Random(1)
    played = source(name, sandbox)
    config = RolloutConfig(group_size=1, thinking=thinking, sampling=SamplingConfig(max_tokens=500), infra_retries=0)

    async def replayed(index: int) -> tuple[list[int], list[int], Trajectory]:
        task = spec.generate(index, 3, "train")
        tools = spec.make(task, sandbox).tools
        ids, mask = render_demonstration(glm45(), spec.demonstrate(task, rng), tools, thinking)
        agent = Agent(chat=glm45(), engine=Replay(ids, mask), config=config, seed=0)
        group = await run_group(agent, played, task, task.id)
        return ids, mask, group.trajectories[0]

    async def several() -> list[tuple[list[int], list[int], Trajectory]]:
        return [await replayed(index) for index in range(8)]

    rewards = []
    for ids, mask, trajectory in asyncio.run(several()):
        assert trajectory.outcome == "scored", trajectory.error
        (sample,) = trajectory.samples
        assert (list(sample.token_ids), list(sample.loss_mask)) == (ids, mask)
        assert set(trajectory.reward_parts) == set(spec.reward_parts)
        rewards.append(trajectory.reward)
    assert 1.0 in rewards and 0.0 in rewards  # the oracle is noisy: both a success and a failure are judged
