"""A recipe's `tasks.sources.N.environment` sections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from rewards.strict import Named


class EnvironmentSettings(Named):
    """The base of every environment's settings; `environment: NAME` is short for `environment: {name: NAME}`."""

    kind: ClassVar[str] = "environment"


class PythonSettings(EnvironmentSettings):
    max_observation: int = Field(default=400, ge=1)
    """Maximum number of characters of a program's output that the model is shown."""
    workspace: bool = False
    """Whether the files that programs write are there for the later programs of the same trajectory."""


class ReasoningSettings(EnvironmentSettings):
    family: str
    """The name of a family of reasoning-gym, for example chain_sum."""
    parameters: Mapping[str, Any] = Field(default_factory=dict)
    """The family's own parameters; what is left out has the library's default. Sluice chooses seed and size."""
    answer: Literal["text", "number", "tags"] = "tags"
    """What is graded: the whole text, its last number, or what stands between the last <answer> and </answer>."""
    instruction: str | None = None
    """How to answer, behind every question; null: a sentence that fits `answer`, or none where examples show it."""
    examples: int = Field(default=0, ge=0)
    """How many solved tasks every conversation begins with: always the same ones, from the training split."""
    partial_credit: bool = False
    """Whether an answer that the grader scores below 1 earns that score. Off: it earns 0."""
