"""When the deadline passes, the time was spent by the policy on its tool calls (the trajectory is truncated) or by the
machine (it is an infrastructure failure)."""

from __future__ import annotations

from typing import Any

import pytest

from rollout.agent.config import SamplingConfig
from tests.rollout.agent.agent_support import CONFIG, act

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

CONFIG_2S = CONFIG.model_copy(
    update={"trajectory_timeout_s": 2.0, "sampling": SamplingConfig(max_tokens=1000), "max_context": 2000}
)
STALL = 30.0


def calls(tool: str, seconds: float, times: int) -> str:
    return "\n".join([f'CALL {tool} {{"s": {seconds}}}'] * times)


@pytest.mark.parametrize(
    ("script", "stage"),
    [([calls("wait", 0.3, 20)], "environment"), ([calls("wait", 0.4, 4), (STALL, "1")], "generate")],
)
def test_many_slow_tool_calls_are_the_policys_choice(script: list[Any], stage: str) -> None:
    """This holds, too, where the calls left too little time for the engine."""
    trajectory, _, (environment,) = act(script, config=CONFIG_2S)
    assert (trajectory.outcome, trajectory.stop_reason, trajectory.reward) == ("truncated", "time_limit", 0.0)
    assert environment.answers == [None] and environment.closed == 1
    assert trajectory.samples[0].trained_tokens > 0
    assert trajectory.spans[-2].name == stage


def the_first_try_loses(seconds: float, then: str) -> Any:
    return lambda request_id: (seconds, RuntimeError("lost")) if request_id.startswith("g/0/0/") else then


@pytest.mark.parametrize(
    ("script", "stage"),
    [
        ([(STALL, "1")], "generate"),
        ([calls("wait", STALL, 1)], "environment"),
        ([(1.7, calls("wait", STALL, 1))], "environment"),
        ([the_first_try_loses(1.3, calls("wait", 0.1, 20))], "environment"),
        ([calls("queue", 0.3, 20)], "environment"),
    ],
    ids=["a stalled engine", "a stalled tool", "a slow engine", "an earlier try", "the queue for the sandbox"],
)
def test_what_the_machine_spent_is_an_infrastructure_failure(script: list[Any], stage: str) -> None:
    trajectory, _, made = act(script, config=CONFIG_2S)
    assert (trajectory.outcome, trajectory.reward, trajectory.samples) == ("infra_error", None, ())
    assert str(trajectory.error).endswith(f"trajectory_timeout_s=2 passed in {stage}")
    assert [environment.closed for environment in made] == [1] * len(made)


def test_the_time_is_up_for_every_try() -> None:
    _, engine, made = act([(STALL, "1")], config=CONFIG_2S)
    assert len(engine.requests) == len(made) == 1
