"""The reward in example.py, loaded as a run loads it: `./launch.sh test` with the path of this file."""

import asyncio
from pathlib import Path

import pytest

from rewards.contracts import Ending
from rewards.extension import load
from rewards.sandbox.config import SandboxConfig
from rewards.sandbox.sandbox import Sandbox
from rewards.scorers.registry import REWARDS

NAME = f"{Path(__file__).with_name('example.py')}:Example"
Example = load(REWARDS, NAME)
REWARD = Example(Example.Settings(name=NAME, length=10), Sandbox(SandboxConfig(kind="unsafe-none")))


@pytest.mark.parametrize(
    ("answer", "score"), [("short", 1.0), ("x" * 10, 1.0), ("x" * 20, 0.5), ("x" * 40, 0.25), ("", 0.0), (None, 0.0)]
)
def test_a_long_answer_scores_less(answer: str | None, score: float) -> None:
    assert asyncio.run(REWARD.score(Ending(answer=answer))) == {"example": score}


def test_it_returns_the_parts_that_it_announces() -> None:
    assert asyncio.run(REWARD.score(Ending(answer="yes"))).keys() == set(REWARD.parts)
