"""Questions to actors on several machines, each with a deadline: a machine that hangs costs its own line only."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from rewards.errors import one_line
from rl.processes.stopping import StopRequest

POLL_S = 0.3
CHARACTERS = 300


TOTAL_S = 45.0
"""For all questions. Starting and stopping come on top, and all of it takes less than a minute."""


class Budget:
    """The time that is left for all questions together. The deadlines of single ones grow with it beyond TOTAL_S."""

    def __init__(self, total_s: float) -> None:
        self._end = time.monotonic() + total_s
        self._scale = max(total_s / TOTAL_S, 1.0)

    def left(self, most_s: float) -> float:
        """Seconds for the next question: `most_s`, scaled, or what is left."""
        return max(min(most_s * self._scale, self._end - time.monotonic()), 0.0)


@dataclass(slots=True)
class Answers:
    """By name the answer of each that answered, and for each other one why it did not."""

    given: dict[str, Any] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def problem(self) -> str | None:
        """Words for those that did not answer; None if all did."""
        return "; ".join(f"{name}: {why}" for name, why in self.failed.items()) or None


def ask(
    actors: Mapping[str, ActorHandle],
    method: str,
    arguments: Mapping[str, tuple[Any, ...]],
    stop: StopRequest,
    limit_s: float,
) -> Answers:
    """Call a method of each actor with arguments of its own, and wait for the answers.

    Raises:
        Stopped: `stop` was requested.
    """
    started = {getattr(actor, method).remote(*arguments[name]): name for name, actor in actors.items()}
    pending, end = list(started), time.monotonic() + limit_s
    while pending and (left := end - time.monotonic()) > 0:
        stop.check()
        _, pending = ray.wait(pending, num_returns=len(pending), timeout=min(left, POLL_S))
    answers = Answers()
    for reference, name in started.items():
        if reference in pending:
            answers.failed[name] = f"no answer within {limit_s:.0f} s" if limit_s else "no time was left to ask"
            continue
        try:
            answers.given[name] = ray.get(reference)
        except RayError as error:
            answers.failed[name] = _words(error)
    return answers


def _words(error: RayError) -> str:
    cause = error.cause if isinstance(error, RayTaskError) and error.cause is not None else error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return one_line(lines[0] if lines else type(cause).__name__, CHARACTERS)
