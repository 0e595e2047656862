"""A trajectory as a text to read: who said what, which tools were called, and how it ended."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from rewards.errors import one_line
from rollout.types import Group, Trajectory

_INDENT = "  "
_CHARACTERS = 4000
"""The most of one message that is shown."""


def transcript(group: Group, trajectory: Trajectory) -> str:
    """The conversation, then the ending: why it stopped, its reward with the parts, and its tokens."""
    lines = [f"── {one_line(group.task.id, 120)} · {group.task.source} ──"]
    for message in trajectory.messages:
        lines += spoken(message)
    return "\n".join([*lines, ending(trajectory)])


def spoken(message: Mapping[str, Any]) -> Iterator[str]:
    """One message as lines: its role, then what it says, indented."""
    yield f"{message['role']}:"
    if reasoning := message.get("reasoning_content"):
        yield _shown(f"(thinks) {reasoning}")
    if message.get("content"):
        yield _shown(str(message["content"]))
    for call in message.get("tool_calls") or ():
        function = call.get("function", call)
        yield _shown(f"→ {function['name']}({json.dumps(function['arguments'], ensure_ascii=False)})")
    if problem := message.get("malformed"):
        yield _shown(f"(malformed: {problem})")


def ending(trajectory: Trajectory) -> str:
    """How it ended, in a line."""
    if trajectory.outcome == "infra_error":
        return f"failed: {one_line(trajectory.error or 'no message', 300)}"
    parts = ", ".join(f"{name} {value:g}" for name, value in trajectory.reward_parts.items())
    sampled = sum(sample.trained_tokens for sample in trajectory.samples)
    verdict = "success" if trajectory.success else "no success"
    return f"{trajectory.stop_reason} · reward {trajectory.reward:g} ({parts}) · {verdict} · {sampled} tokens sampled"


def _shown(text: str) -> str:
    """A text with its lines, of which a terminal would obey no character."""
    cut = text if len(text) <= _CHARACTERS else f"{text[:_CHARACTERS]}… ({len(text) - _CHARACTERS} more characters)"
    safe = "\n".join(one_line(line, 2 * _CHARACTERS) for line in cut.split("\n"))
    return textwrap.indent(safe, _INDENT)
