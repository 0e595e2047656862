"""The environment in example.py, loaded as a run loads it: `./launch.sh test` with the path of this file."""

import asyncio
import random
from pathlib import Path

import pytest

from rewards.extension import load
from rewards.sandbox.config import SandboxConfig
from rewards.sandbox.sandbox import Sandbox
from rollout.contracts import EpisodeEnded, ToolCall
from rollout.envs.registry import ENVIRONMENTS, make_environment

NAME = f"{Path(__file__).with_name('example.py')}:Example"
SPEC = make_environment(load(ENVIRONMENTS, NAME).Settings(name=NAME, looks=1))
TASK = SPEC.generate(0, seed=0, split="train")
EPISODE = SPEC.make(TASK, Sandbox(SandboxConfig(kind="unsafe-none")))


@pytest.mark.parametrize(("answer", "score"), [(TASK.payload["thing"], 1.0), ("unknown", 0.0), (None, 0.0)])
def test_only_the_right_answer_scores_1(answer: str | None, score: float) -> None:
    assert asyncio.run(EPISODE.score(answer)) == {"found": score}


def test_the_tool_answers_mistakes_and_the_episode_ends_after_the_last_look() -> None:
    episode = SPEC.make(TASK, Sandbox(SandboxConfig(kind="unsafe-none")))
    look = ToolCall(name="look", arguments={"place": TASK.payload["place"]})
    assert str(asyncio.run(episode.call(ToolCall(name="lock")))).startswith("error: unknown tool 'lock'")
    assert asyncio.run(episode.call(look)) == TASK.payload["thing"]
    with pytest.raises(EpisodeEnded):
        asyncio.run(episode.call(look))


def test_a_task_is_the_same_every_time_and_in_one_split() -> None:
    assert SPEC.generate(0, seed=0, split="train") == TASK
    train, held_out = ({str(SPEC.generate(i, 0, split).payload) for i in range(200)} for split in ("train", "eval"))
    assert train and held_out and not train & held_out


def test_a_demonstration_begins_with_the_task_and_some_find_the_thing() -> None:
    shown = [SPEC.demonstrate(TASK, random.Random(seed)) for seed in range(20)]
    assert all(messages[0] == TASK.messages[0] for messages in shown)
    assert {messages[-1]["content"] for messages in shown} == {TASK.payload["thing"], "unknown"}
