"""An OpenAI-compatible endpoint in the place of an engine."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from rewards.scorers.remote import Remote
from rollout.agent.config import RolloutConfig, SamplingConfig
from rollout.agent.endpoint import CONTEXT, EndpointChat, EndpointEngine
from rollout.agent.episode import Agent
from rollout.agent.loop import run_agent
from rollout.types import Task, Trajectory
from tests.rewards.scorers.test_remote import Reply, service
from tests.support import source

TASK = Task(
    id="t",
    environment="store",
    source="store",
    messages=({"role": "user", "content": "Put the fox – please – in the attic."},),
    payload={"state": {"fox": "cellar"}, "goal": {"fox": "attic"}},
)


def answer(content: str | None = None, *calls: tuple[str, str], finish: str = "stop") -> dict[str, Any]:
    told = [
        {"id": f"call-{n}", "type": "function", "function": {"name": name, "arguments": text}}
        for n, (name, text) in enumerate(calls)
    ]
    message = {"role": "assistant", "content": content, **({"tool_calls": told} if told else {})}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}


def played(*replies: Reply, retries: int = 0) -> tuple[Trajectory, list[Any]]:
    with service(lambda number, _: replies[min(number, len(replies) - 1)]) as (url, asked):

        async def play() -> Trajectory:
            remote = Remote(retries=retries, requests_per_minute=None, deadline_s=60.0)
            engine = EndpointEngine(f"{url}/v1", "m", remote, api_key="k", timeout_s=20)
            config = RolloutConfig(
                max_context=CONTEXT, infra_retries=0, max_turns=4, sampling=SamplingConfig(max_tokens=50)
            )
            agent = Agent(chat=EndpointChat(), engine=engine, config=config, seed=0)
            return await run_agent(agent, source("store"), TASK, "g", "g/0")

        return asyncio.run(play()), [content for _, content, _ in asked]


def test_tools_are_called_and_results_joined_by_their_ids() -> None:
    calls = (("set", json.dumps({"name": "fox", "place": "attic"})), ("get", json.dumps({"name": "fox"})))
    done, asked = played((200, answer(None, *calls)), (200, answer("Done – é.")))
    assert (done.stop_reason, done.reward, done.success) == ("answered", 1.0, True)
    assert [m["role"] for m in done.messages] == ["user", "assistant", "tool", "tool", "assistant"]
    first, second = asked
    assert first["model"] == "m" and first["max_tokens"] == 50
    assert {tool["function"]["name"] for tool in first["tools"]} == {"get", "set", "delete"}
    assert first["messages"] == [{"role": "user", "content": "Put the fox – please – in the attic."}]
    spoken = second["messages"][1]
    assert [call["id"] for call in spoken["tool_calls"]] == ["call-0", "call-1"]
    assert [(m["role"], m["tool_call_id"]) for m in second["messages"][2:]] == [("tool", "call-0"), ("tool", "call-1")]
    assert second["messages"][3]["content"] == "attic"


@pytest.mark.parametrize(
    ("reply", "stop", "outcome"),
    [
        ((200, answer("cut of", finish="length")), "token_limit", "truncated"),
        ((200, answer(None, ("set", "{oops"))), "malformed", "scored"),
        ((200, answer(None, ("set", "[1]"))), "malformed", "scored"),
        ((200, answer("")), "answered", "scored"),
        ((400, {"error": {"message": "too long"}}), "aborted", "infra_error"),
        ((500, {}), "aborted", "infra_error"),
        ((200, {**answer("x"), "choices": []}), "aborted", "infra_error"),
    ],
)
def test_whatever_comes_back_is_scored_or_a_failure(reply: Reply, stop: str, outcome: str) -> None:
    done, _ = played(reply)
    assert (done.stop_reason, done.outcome) == (stop, outcome)
    if outcome == "infra_error":
        assert "the endpoint http://127.0.0.1" in str(done.error)


def test_an_endpoint_that_is_busy_is_asked_again() -> None:
    done, asked = played((429, {}, {"Retry-After": "0.1"}), (200, answer("no")), retries=1)
    assert done.stop_reason == "answered" and len(asked) == 2
