"""What a try shows to its collaborators and leaves behind: messages, the ending that is scored, times, failed tries."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from rollout.agent.loop import run_agent
from rollout.types import Span, Trajectory
from tests.rollout.agent.agent_support import CONFIG, TASK, Counter, Counters, ScriptedEngine, act, agent

pytestmark = pytest.mark.timeout(60)

ADD = "CALL add {}"
CALLED = {"type": "function", "function": {"name": "add", "arguments": {}}}


def test_messages_have_the_form_of_the_openai_api() -> None:
    trajectory, _, _ = act([f"why|{ADD}\n{ADD}", "2"])
    assert list(trajectory.messages) == [
        {"role": "user", "content": "count to 2"},
        {
            "role": "assistant",
            "content": f"{ADD}\n{ADD}",
            "reasoning_content": "why",
            "tool_calls": [CALLED, CALLED],
        },
        {"role": "tool", "content": "count is 1"},
        {"role": "tool", "content": "count is 2"},
        {"role": "assistant", "content": "2"},
    ]


def test_a_malformed_turn_says_what_is_wrong_with_it() -> None:
    trajectory, _, _ = act(["CALL add {"])
    assert trajectory.messages[-1].keys() == {"role", "content", "malformed"}
    assert "Expecting property name" in trajectory.messages[-1]["malformed"]


def test_a_turn_that_nothing_can_follow_is_malformed_too() -> None:
    trajectory, engine, (environment,) = act([f"!\n{ADD}\n{ADD}", "never asked"])
    assert (trajectory.outcome, trajectory.stop_reason, environment.answers) == ("scored", "malformed", [None])
    assert [message.get("malformed") for message in trajectory.messages] == [None, "nothing can follow", None, None]
    assert len(engine.seen) == 1


@pytest.mark.parametrize("thinking", [True, False])
def test_the_chat_is_given_the_environments_tools_and_the_recipes_mode(thinking: bool) -> None:
    config = CONFIG.model_copy(update={"thinking": thinking})
    acting = agent(ScriptedEngine([ADD, "1"]), config)
    asyncio.run(run_agent(acting, Counters(), TASK, "g", "g/0"))  # type: ignore[arg-type]
    tools = Counter.tools
    expected = [("open", tools, thinking), ("parse", tools), ("bridge", thinking), ("parse", tools)]
    assert acting.chat.asked == expected  # type: ignore[attr-defined]


def test_a_reward_is_shown_the_whole_ending() -> None:
    source = Counters()
    trajectory = asyncio.run(run_agent(agent(ScriptedEngine([ADD, "1"])), source, TASK, "g", "g/0"))  # type: ignore[arg-type]
    (ending,) = source.endings
    assert (ending.answer, ending.payload, ending.metadata) == ("1", {"goal": 2}, {"kind": "easy"})
    assert (ending.state, tuple(ending.messages)) == ({"count": 1}, trajectory.messages)
    assert (trajectory.task_id, trajectory.group_id) == ("t", "g")


def test_a_trajectory_whose_tries_all_failed_keeps_what_its_last_try_did() -> None:
    def fails(request_id: str) -> Any:
        return RuntimeError(f"lost {request_id}")

    trajectory, _, _ = act([f"{ADD}\nCALL fly {{}}\nCALL swim {{}}", fails])
    assert trajectory.error == "try 1: RuntimeError: lost g/0/0/1; try 2: RuntimeError: lost g/0/1/1"
    assert (trajectory.task_id, trajectory.group_id, trajectory.turns) == ("t", "g", ())
    assert [message["role"] for message in trajectory.messages] == ["user", "assistant", "tool", "tool", "tool"]
    assert [span.name for span in trajectory.spans] == ["generate", *["environment"] * 3, "generate"]
    assert (trajectory.metrics["infra_retries"], trajectory.metrics["tool_errors"]) == (1.0, 2.0)


def seconds(trajectory: Trajectory, stage: str) -> float:
    return math.fsum(span.end - span.start for span in trajectory.spans if span.name == stage)


def test_the_seconds_of_a_stage_are_those_of_its_spans() -> None:
    trajectory, _, _ = act([(0.05, 'CALL wait {"s": 0.05}'), (0.05, 'CALL wait {"s": 0.05}'), "0"])
    for stage in ("generate", "environment", "reward"):
        assert trajectory.metrics[f"{stage}_s"] == pytest.approx(seconds(trajectory, stage), abs=1e-9)
    assert seconds(trajectory, "generate") >= 0.1 and seconds(trajectory, "environment") >= 0.1
    assert all(isinstance(span, Span) for span in trajectory.spans)


def test_the_first_turn_is_taken_in_the_environments_first_state() -> None:
    trajectory, _, _ = act(["1", "0"], replies=["go on"])
    assert [turn.state_key for turn in trajectory.turns] == ["s0", None]


def test_a_prompt_needs_room_for_one_token() -> None:
    prompt = len("count to 2") + 1
    full, _, _ = act(["2"], config=CONFIG.model_copy(update={"max_context": prompt}))
    assert full.outcome == "infra_error" and f"has {prompt} tokens" in str(full.error)
    fits, engine, _ = act(["2"], config=CONFIG.model_copy(update={"max_context": prompt + 1}))
    assert fits.outcome == "truncated" and engine.seen[0][2].max_tokens == 1


def test_a_fork_needs_room_for_its_own_tokens_only() -> None:
    config = CONFIG.model_copy(update={"max_context": 40})
    trajectory, _, _ = act(["1" * 20, "2"], config=config, replies=["fork: again"])
    first, second = trajectory.samples
    assert len(first.token_ids) + len(second.token_ids) > 40 and trajectory.stop_reason == "answered"


def test_an_environment_that_does_not_close_spoils_no_trajectory(caplog: pytest.LogCaptureFixture) -> None:
    class Stuck(Counter):
        async def close(self) -> None:
            raise OSError("busy")

    source = Counters(environment=Stuck)
    trajectory = asyncio.run(run_agent(agent(ScriptedEngine(["0"])), source, TASK, "g", "g/0"))  # type: ignore[arg-type]
    assert (trajectory.outcome, trajectory.error) == ("scored", None)
    assert "environment Stuck did not close" in caplog.text and "busy" in caplog.text


def test_a_failed_try_is_in_the_log_with_its_trajectory(caplog: pytest.LogCaptureFixture) -> None:
    act([RuntimeError("engine died")])
    assert "trajectory g/0: try 1: RuntimeError: engine died" in caplog.text and "Traceback" in caplog.text
