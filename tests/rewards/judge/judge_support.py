"""One sandbox for all verdicts of the tests in this folder."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

from rewards.judge.judge import Judge, Verdict, judge
from rewards.judge.rows import judged
from rewards.sandbox.config import SandboxConfig
from rewards.sandbox.sandbox import Sandbox

LIMITS = SandboxConfig(wall_s=20.0, cpu_s=2, memory_mb=128, output_kb=16)
sandbox_of = functools.cache(Sandbox)


def verdict(payload: dict[str, Any], answer: str, **changed: Any) -> Verdict:
    config = LIMITS.model_copy(update=changed)
    return asyncio.run(judge(sandbox_of(config), judged(payload), answer))


def score(payload: dict[str, Any], answer: str | None, **changed: Any) -> float:
    config = LIMITS.model_copy(update=changed)
    return asyncio.run(Judge(sandbox_of(config))(judged(payload), answer, "row-7"))
