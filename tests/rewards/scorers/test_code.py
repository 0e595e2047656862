"""The code-execution reward: the tests of the task decide, and a broken sandbox raises an error."""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path
from typing import Any

import pytest

from rewards.contracts import Ending
from rewards.errors import InfrastructureError
from rewards.sandbox.config import SandboxConfig
from rewards.sandbox.sandbox import Sandbox
from rewards.scorers.code import CodeReward
from rewards.scorers.config import RewardSettings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

LIMITS = SandboxConfig(wall_s=20.0, cpu_s=1, memory_mb=96, output_kb=16)
FORTY_TWO = {"tests": "assert answer.strip() == '42'"}
sandbox_of = functools.cache(Sandbox)


def score(payload: dict[str, Any], answer: str | None) -> dict[str, float]:
    reward = CodeReward(RewardSettings(name="code"), sandbox_of(LIMITS))
    assert reward.parts == ("code",) and reward.uses_sandbox
    return asyncio.run(reward.score(Ending(answer=answer, task="row-7", payload=payload)))


def test_the_reward_judges_the_answer_by_the_tasks_tests() -> None:
    assert [score(FORTY_TWO, answer) for answer in ("42", "41", None)] == [{"code": 1.0}, {"code": 0.0}, {"code": 0.0}]
    payload = {"entry_point": "f", "tests": ["assert f(2) == 4"], "source": "anything else"}
    assert score(payload, "def f(x): return x * x") == {"code": 1.0}


def test_a_payload_that_says_nothing_usable_is_the_tasks_error() -> None:
    with pytest.raises(ValueError, match="not Python"):
        score({"tests": "assert ("}, "42")


def test_broken_tests_name_the_task() -> None:
    with pytest.raises(InfrastructureError, match="the tests of task row-7 are broken"):
        score({"tests": "import numpyx"}, "42")


def test_a_failing_sandbox_is_not_a_score(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sandbox_of(LIMITS)  # made while bwrap can be found
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InfrastructureError, match="bwrap"):
        score(FORTY_TWO, "42")
