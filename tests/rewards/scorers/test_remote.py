"""Rewards that somebody else computes, asked on loopback: a judge and a service."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from rewards.contracts import Ending, Scored
from rewards.errors import InfrastructureError
from rewards.sandbox.config import SandboxConfig
from rewards.sandbox.sandbox import Sandbox
from rewards.scorers.config import FunctionSettings, HttpSettings, JudgeSettings
from rewards.scorers.function import FunctionReward

pytestmark = pytest.mark.slow

Reply = tuple[int, Any] | tuple[int, Any, dict[str, str]]
Asked = list[tuple[dict[str, str], Any, float]]
"""Headers, content and time of each request."""


@contextmanager
def service(reply: Callable[[int, Any], Reply]) -> Iterator[tuple[str, Asked]]:
    """A server that answers request number N, from 0, with what `reply` makes of N and the content."""
    asked: Asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(({name.lower(): value for name, value in self.headers.items()}, content, time.monotonic()))
            code, answer, *headers = reply(len(asked) - 1, content)
            if code == 0:  # hang up
                return
            body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(code)
            for name, value in (headers[0] if headers else {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", asked
        finally:
            server.shutdown()
            thread.join()


PROMPT = {"role": "user", "content": "2 + 2?"}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
SAID = ({"role": "assistant", "content": "", "tool_calls": [CALL]}, {"role": "tool", "content": "4"})
ENDING = Ending(
    answer="4",
    task="t",
    messages=(PROMPT, *SAID, {"role": "assistant", "content": "It is 4. GRADE: 10"}),
    asked=1,
    metadata={"answer": "4"},
)


def scored(settings: FunctionSettings, count: int = 1) -> list[Scored]:
    made = FunctionReward(settings, Sandbox(SandboxConfig(kind="unsafe-none")))

    async def run() -> list[Scored]:
        try:
            return await asyncio.gather(*(made.score(ENDING) for _ in range(count)))
        finally:
            for host in made._hosts:
                await host.close()

    return asyncio.run(run())


def graded(text: str, **more: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    usage = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}
    return {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [choice],
        "usage": usage,
    } | more


def judge(url: str, **settings: Any) -> JudgeSettings:
    return JudgeSettings(name="judge", base_url=f"{url}/v1", model="m", **settings)


def test_a_judge_grades_by_the_rubric_and_its_cost_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "secret")
    rubric = 'Is it {answer}? From {low} to {high}, {unknown}, {"a": 1}.'
    with service(lambda *_: (200, graded("Fine.\n**GRADE: 4/5**"))) as (url, asked):
        settings = judge(url, rubric=rubric, low=1.0, high=5.0, api_key_env="JUDGE_KEY")
        priced = settings.model_copy(update={"usd_per_million_input": 3.0, "usd_per_million_output": 10.0})
        (found,) = scored(priced)
    assert found.parts == {"judge": 0.75}
    expected = {"judge_calls": 1.0, "judge_input_tokens": 1000.0, "judge_output_tokens": 100.0, "cost_usd": 0.004}
    assert found.metrics == pytest.approx(expected)
    headers, content, _ = asked[0]
    assert headers["authorization"] == "Bearer secret" and (content["model"], content["temperature"]) == ("m", 0.0)
    system, user = (message["content"] for message in content["messages"])
    assert system.startswith('Is it 4? From 1 to 5, {unknown}, {"a": 1}.')
    assert 'calls add({"a": 2})' in user and "[tool]\n4" in user and "It is 4." in user
    mark = user.splitlines()[0]
    assert user.endswith(mark) and mark in system and len(mark) > 16


@pytest.mark.parametrize(
    "text", ["I would say 7.", "GRADE: eleven", "GRADE: 11", "GRADE: -1", "", "the GRADE: 5 I give"]
)
def test_a_judge_that_gives_no_grade_is_asked_again_and_is_never_a_zero(text: str) -> None:
    with service(lambda number, _: (200, graded(text if number < 2 else "GRADE: 5"))) as (url, asked):
        (found,) = scored(judge(url, retries=2))
    assert found.parts == {"judge": 0.5} and found.metrics["judge_calls"] == len(asked) == 3
    assert [len(content["messages"]) for _, content, _ in asked] == [2, 4, 6], "it is told what its reply lacks"
    with (
        service(lambda *_: (200, graded(text))) as (url, _),
        pytest.raises(InfrastructureError, match=r"reward judge: .*the judge gave .* \(1 tries\)"),
    ):
        scored(judge(url, retries=0))


@pytest.mark.parametrize("text", ["GRADE: <8>", "GRADE: [8]", "**Grade**: 8", "GRADE: 8 out of 10", "GRADE: 8 (good)"])
def test_grades_are_written_in_several_ways(text: str) -> None:
    with service(lambda *_: (200, graded(text))) as (url, _):
        assert scored(judge(url))[0].parts == {"judge": 0.8}


def test_the_last_grade_counts() -> None:
    with service(lambda *_: (200, graded("GRADE: 0 would be too hard.\nGRADE: 2\nBetter:\nGRADE: 8"))) as (url, _):
        assert scored(judge(url))[0].parts == {"judge": 0.8}


@pytest.mark.parametrize("code", [429, 500, 503, 0])
def test_a_judge_that_is_busy_or_away_is_asked_again(code: int) -> None:
    with service(lambda number, _: (200, graded("GRADE: 5")) if number else (code, {}, {"Retry-After": "0.2"})) as (
        url,
        asked,
    ):
        assert scored(judge(url))[0].parts == {"judge": 0.5}
    assert len(asked) == 2


def test_a_judge_that_refuses_is_a_failure_at_once() -> None:
    with (
        service(lambda *_: (401, {"error": {"message": "wrong key"}})) as (url, asked),
        pytest.raises(InfrastructureError, match="reward judge: AuthenticationError"),
    ):
        scored(judge(url))
    assert len(asked) == 1


def test_a_key_that_is_not_there_is_named() -> None:
    with pytest.raises(InfrastructureError, match=r"the environment variable NO_SUCH_KEY \(api_key_env\) is not set"):
        scored(judge("http://127.0.0.1:9", api_key_env="NO_SUCH_KEY"))


def test_requests_come_no_faster_than_their_rate() -> None:
    with service(lambda *_: (200, graded("GRADE: 5"))) as (url, asked):
        settings = judge(url, requests_per_minute=480.0, processes=2).shared_by(2)
        assert isinstance(settings, JudgeSettings) and settings.requests_per_minute == 120.0
        settings = settings.model_copy(update={"processes": 1, "deadline_s": 1.5})
        assert len(scored(settings, count=5)) == 5
    assert asked[-1][2] - asked[0][2] >= 4 * 0.5 - 0.4, "four waits of half a second, and the way here"


def http(url: str, **settings: Any) -> HttpSettings:
    return HttpSettings(name="http", url=url, **settings)


def test_a_service_gets_prompts_completions_and_columns() -> None:
    with service(lambda *_: (200, {"rewards": [0.25]})) as (url, asked):
        assert scored(http(url))[0].parts == {"http": 0.25}
    content = asked[0][1]
    assert content["prompts"] == [[PROMPT]] and content["columns"] == {"answer": ["4"]}
    assert content["completions"] == [[*SAID, {"role": "assistant", "content": "It is 4. GRADE: 10"}]]


def test_a_service_may_abstain_and_may_get_text() -> None:
    with service(lambda *_: (200, {"rewards": [None]})) as (url, asked):
        assert scored(http(url, completions="text", part="mine"))[0].parts == {}
    assert asked[0][1]["completions"] == ["It is 4. GRADE: 10"]


@pytest.mark.parametrize(
    ("reply", "reason", "times"),
    [
        ((200, {"scores": [1]}), "answered without a list of rewards", 1),
        ((200, [1.0]), "answered without a list of rewards", 1),
        ((200, b"oops"), "JSONDecodeError", 1),
        ((200, {"rewards": [1, 2]}), "not a list with one number", 1),
        ((404, {}), "answered 404", 1),
        ((500, {}), r"answered 500 \(2 tries\)", 2),
        ((0, {}), r"RemoteProtocolError .*\(2 tries\)", 2),
    ],
)
def test_a_service_that_answers_badly_is_a_failure(reply: Reply, reason: str, times: int) -> None:
    with (
        service(lambda *_: reply) as (url, asked),
        pytest.raises(InfrastructureError, match=f"reward http: .*{reason}"),
    ):
        scored(http(url, retries=1))
    assert len(asked) == times


def test_a_service_that_does_not_answer_in_time_is_asked_again() -> None:
    def slow(number: int, _: Any) -> Reply:
        if number == 0:
            time.sleep(3)
        return 200, {"rewards": [1]}

    with service(slow) as (url, _):
        assert scored(http(url, timeout_s=0.5, deadline_s=60.0))[0].parts == {"http": 1.0}
