"""Rewards that look at a whole group: real functions in their own process, over trajectories that have ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rewards.scorers.config import FunctionSettings, HttpSettings
from rollout.agent.compare import compared
from rollout.agent.config import RolloutConfig
from rollout.agent.loop import run_group
from rollout.agent.source import Source
from rollout.types import Group, Task, Trajectory
from tests.rollout.agent.agent_support import ScriptedEngine, agent
from tests.samples import failed_trajectory
from tests.support import source as source_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

CODE = """
import time


def shortest(prompts, completions, answer, log_metric, **kwargs):
    lengths = [len(c[-1]["content"]) for c in completions]
    log_metric("spread", max(lengths) - min(lengths))
    assert len(prompts) == len(answer) == len(completions)
    return [None if length == 4 else float(length == min(lengths)) for length in lengths]


def each(completions, **kwargs):
    assert len(completions) == 1
    return [0.5]


def too_few(completions, **kwargs):
    return [1.0]


def hangs(completions, **kwargs):
    time.sleep(100)


def fails_once(completions, **kwargs):
    from pathlib import Path
    seen = Path(__file__).with_name("seen")
    if not seen.exists():
        seen.touch()
        raise ValueError("not yet")
    return [2.0] * len(completions)
"""
TASK = Task(
    id="t",
    environment="tools",
    source="tools",
    messages=({"role": "user", "content": "say"},),
    metadata={"answer": "x"},
)


def member(said: str) -> Trajectory:
    return Trajectory(
        task_id="t",
        group_id="g",
        samples=(),
        messages=(*TASK.messages, {"role": "assistant", "content": said}),
        stop_reason="answered",
        outcome="scored",
        reward=0.5,
        success=False,
        reward_parts={"each": 0.5},
        metrics={"reward_s": 1.0, "turns": 1.0},
    )


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Source]:
    (tmp_path / "mine.py").write_text(CODE)

    def source(*names: str, **keys: Any) -> Source:
        whole = {"whole_group": True, "deadline_s": 5.0}
        given = [{"name": f"{tmp_path}/mine.py:{name}"} | (whole if name != "each" else {}) for name in names]
        rewards = tuple(FunctionSettings.model_validate(one) for one in given)
        return source_of("tools", rewards=rewards, **keys)

    return source


def score(source: Source, *members: Trajectory, retries: int = 0) -> tuple[Trajectory, ...]:
    group = Group(id="g", task=TASK, trajectories=members)
    config = RolloutConfig(infra_retries=retries, trajectory_timeout_s=20.0)

    async def run() -> Group:
        try:
            return await compared(group, source, config)
        finally:
            await source.close()

    return asyncio.run(run()).trajectories


def test_members_are_compared_and_their_parts_join_those_they_had(made: Callable[..., Source]) -> None:
    source = made("each", "shortest", weights={"shortest": 2.0}, success={"shortest": 1.0})
    assert source.compares and source.parts == ("each", "shortest")
    lost = failed_trajectory("t", "g", "before")
    first, second, third, fourth = score(source, member("aa"), lost, member("aaa"), member("aaaa"))
    assert (first.reward, first.success, first.reward_parts) == (2.5, True, {"each": 0.5, "shortest": 1.0})
    assert second is lost
    assert (third.reward, third.success, third.reward_parts) == (0.5, False, {"each": 0.5, "shortest": 0.0})
    assert fourth.reward_parts == {"each": 0.5}  # the function said None of it
    assert first.metrics["reward/spread"] == 2 and first.metrics["turns"] == 1 and first.metrics["reward_s"] > 1
    assert [span.name for span in first.spans] == ["reward"]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("too_few", "it returned [1.0], and not a list with 2 numbers for its 2 completions"),
        ("hangs", "took longer than 5"),
    ],
)
def test_a_failure_is_one_of_all_members_and_never_a_number(made: Callable[..., Source], name: str, told: str) -> None:
    for found in score(made("each", name), member("a"), member("b")):
        assert (found.outcome, found.reward, found.success, found.reward_parts) == ("infra_error", None, None, {})
        assert told in str(found.error)


def test_it_is_asked_again_after_a_failure(made: Callable[..., Source]) -> None:
    assert [found.reward for found in score(made("fails_once"), member("a"), member("b"), retries=1)] == [2.5, 2.5]


def test_a_member_to_which_nothing_applies_is_a_failure_of_its_own(made: Callable[..., Source]) -> None:
    source = made("shortest")
    bare = [Trajectory(**{**fields(member(said)), "reward_parts": {}, "reward": 0.0}) for said in ("aa", "aaaa")]
    good, nothing = score(source, *bare)
    assert good.reward == 1.0
    assert nothing.outcome == "infra_error" and "none of the rewards shortest applies" in str(nothing.error)


def fields(trajectory: Trajectory) -> dict[str, Any]:
    return {name: getattr(trajectory, name) for name in Trajectory.__slots__}


def test_a_whole_group_is_played_and_compared(made: Callable[..., Source]) -> None:
    source = made("shortest")

    async def run() -> Group:
        try:
            return await run_group(
                agent(ScriptedEngine([lambda request: "a" * (1 + int(request.split("/")[1]))])), source, TASK, "g"
            )
        finally:
            await source.close()

    found = asyncio.run(run())
    assert [t.reward for t in found.trajectories] == [1.0, 0.0, 0.0], [t.error for t in found.trajectories]


def test_rewards_that_ask_somebody_else_look_at_each_attempt() -> None:
    with pytest.raises(ValueError, match="whole_group is for functions"):
        HttpSettings.model_validate({"name": "http", "url": "http://localhost:1", "whole_group": True})
    assert FunctionSettings.model_validate({"name": "a.py:f", "whole_group": True}).whole_group
