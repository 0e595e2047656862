"""A trajectory as a text to read."""

from __future__ import annotations

from rl.observe.transcript import transcript
from rollout.types import Group, Task, Trajectory
from tests.samples import failed_trajectory

CALL = {"type": "function", "function": {"name": "get", "arguments": {"name": "é"}}}
TASK = Task(id="t-1", environment="store", source="store", messages=({"role": "user", "content": "Where?"},))


def group(trajectory: Trajectory) -> Group:
    return Group(id="g", task=TASK, trajectories=(trajectory,))


def test_who_said_what_and_how_it_ended() -> None:
    messages = (
        {"role": "user", "content": "Where?\nSay it."},
        {"role": "assistant", "content": "", "reasoning_content": "Look.", "tool_calls": [CALL]},
        {"role": "tool", "content": "x\x1b[2J"},
        {"role": "assistant", "content": "a" * 5000, "malformed": "a marker"},
    )
    done = Trajectory(
        task_id="t-1",
        group_id="g",
        samples=(),
        messages=messages,
        stop_reason="malformed",
        outcome="scored",
        reward=0.5,
        success=False,
        reward_parts={"state": 0.5},
    )
    text = transcript(group(done), done)
    assert text.startswith(
        '── t-1 · store ──\nuser:\n  Where?\n  Say it.\nassistant:\n  (thinks) Look.\n  → get({"name": "é"})'
    )
    assert "tool:\n  x\\x1b[2J\n" in text, "no terminal obeys it"
    assert "… (1000 more characters)" in text and "(malformed: a marker)" in text
    assert text.endswith("malformed · reward 0.5 (state 0.5) · no success · 0 tokens sampled")


def test_a_failure_says_why() -> None:
    lost = failed_trajectory("t", "g", "try 1: the engine\ndied")
    assert transcript(group(lost), lost).endswith("failed: try 1: the engine\\ndied")
