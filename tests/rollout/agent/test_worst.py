"""The worst that a policy, a tool or an environment can make: it is bounded where it enters, and every group that ends
can be stored and read back."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rollout.agent.episode import CHARACTERS_PER_TOKEN
from rollout.agent.loop import ERROR_CHARACTERS, lost, run_agent
from rollout.contracts import Observation, ToolCall
from rollout.store.segments import Segment, read_group
from rollout.types import Group, Trajectory
from tests.rollout.agent.agent_support import CONFIG, TASK, Counter, Counters, ScriptedEngine, act, agent

LONG = CONFIG.model_copy(
    update={"max_context": 4000, "sampling": CONFIG.sampling.model_copy(update={"max_tokens": 3000})}
)


def shown_after_a_call(shown: Any) -> Trajectory:
    """An attempt in an environment that answers a call with `shown`."""

    class Showing(Counter):
        async def call(self, call: ToolCall) -> Any:
            return shown

    source = Counters(environment=Showing)
    running = run_agent(agent(ScriptedEngine(["CALL add {}", "2"])), source, TASK, "g", "g/0")  # type: ignore[arg-type]
    return asyncio.run(running)


def stored(folder: Path, *members: Trajectory) -> Group:
    """The group of these members after it was written and read."""
    group = Group(id="g", task=TASK, trajectories=members)
    segment = Segment(folder)
    address = segment.append(group, "train")
    segment.sync()
    segment.close()
    return read_group(folder, address)


@pytest.mark.parametrize(
    ("argument", "outcome"),
    [
        ("[" * 98 + "]" * 98, "answered"),
        ("[" * 500 + "]" * 500, "malformed"),
        ('{"a":' * 300 + "1" + "}" * 300, "malformed"),
        ("NaN", "malformed"),
        ("-1e999", "malformed"),
        ('"\\ud800\\u0000"', "answered"),
        ("1" * 2000, "answered"),
    ],
)
def test_arguments_of_a_policy(tmp_path: Path, argument: str, outcome: str) -> None:
    """A call of an unknown tool: the environment answers with an error text, and the policy goes on."""
    trajectory, _, _ = act([f'CALL x {{"a": {argument}}}', "2"], config=LONG)
    assert (trajectory.outcome, trajectory.stop_reason) == ("scored", outcome)
    assert stored(tmp_path, trajectory).trajectories == (trajectory,)
    if outcome == "malformed":
        assert "the arguments of x.a" in trajectory.messages[-1]["malformed"]


@pytest.mark.parametrize(
    ("shown", "problem"),
    [
        (None, "showed None, which is no text"),
        (b"bytes", "showed b'bytes'"),
        (Observation(5), "showed Observation"),  # type: ignore[arg-type]
        (Observation("x", reward=float("nan")), "the reward of a turn is nan"),
        (Observation("x", reward=np.inf), "the reward of a turn is inf"),
        (Observation("x", state_key=3), "named a state 3"),  # type: ignore[arg-type]
    ],
)
def test_what_an_environment_must_not_show(tmp_path: Path, shown: Any, problem: str) -> None:
    trajectory = shown_after_a_call(shown)
    assert trajectory.outcome == "infra_error" and problem in str(trajectory.error)
    assert stored(tmp_path, trajectory).trajectories == (trajectory,)


@pytest.mark.parametrize("text", ["\0 \u2028 \x1b[2J", "<|user|>" * 3, "", "é" * 10])
def test_any_text_may_be_shown(tmp_path: Path, text: str) -> None:
    trajectory = shown_after_a_call(text)
    assert trajectory.outcome == "scored"
    assert stored(tmp_path, trajectory).trajectories == (trajectory,)


def test_an_endless_text_is_cut() -> None:
    limit = CHARACTERS_PER_TOKEN * CONFIG.max_context
    trajectory = shown_after_a_call("x" * (limit + 10**7))
    assert (trajectory.outcome, trajectory.stop_reason) == ("truncated", "token_limit")
    assert trajectory.messages[-1]["content"] == "x" * limit + "… (10000000 more characters)"


def test_an_error_of_any_length_is_kept_in_part() -> None:
    def fail() -> None:
        raise RuntimeError("x" * 10**7)

    trajectory, _, _ = act(["CALL trouble {}"], trouble=fail)
    assert trajectory.outcome == "infra_error" and len(str(trajectory.error)) < 3 * ERROR_CHARACTERS


def test_a_group_that_cannot_be_stored_is_lost_and_what_is_left_can(tmp_path: Path) -> None:
    trajectory, _, _ = act(["2"])
    broken = replace(trajectory, messages=({"role": "user", "content": object()},))
    group = Group(id="g", task=TASK, trajectories=(trajectory, broken))
    segment = Segment(tmp_path)
    with pytest.raises(TypeError, match="dataclass"):
        segment.append(group, "train")
    left = lost(group, TypeError("Object of type object is not JSON serializable"))
    address = segment.append(left, "train")
    segment.sync()
    segment.close()
    found = read_group(tmp_path, address)
    assert found == left and found.usable == () and len(found.trajectories) == 2
    assert all("the group cannot be stored: TypeError" in str(member.error) for member in found.trajectories)


@pytest.mark.parametrize("reward", [float("nan"), float("inf"), np.float64(1.0), np.float32(1.0), True, "1", 10**400])
def test_a_trajectory_holds_finite_python_numbers_only(reward: Any) -> None:
    trajectory, _, _ = act(["2"])
    with pytest.raises((ValueError, OverflowError)):
        replace(trajectory, reward=reward)
    with pytest.raises((ValueError, OverflowError)):
        replace(trajectory, reward_parts={"right": reward})
