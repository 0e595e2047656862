"""A recipe's `tasks.sources.N.environment` sections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from rewards.strict import Named


class EnvironmentSettings(Named):
    """The base of every environment's settings; `environment: NAME` is short for `environment: {name: NAME}`."""

    kind: ClassVar[str] = "environment"

    @classmethod
    def settings_of(cls, code: Any) -> type[Named]:
        """A class with `reset` is an environment in plain Python, as TRL has them; others are specifications."""
        is_class = isinstance(code, type) and all(base.__name__ != "EnvironmentSpec" for base in code.__mro__)
        if is_class and hasattr(code, "reset") and not hasattr(code, "Settings"):
            return PlainSettings
        return super().settings_of(code)


class PlainSettings(EnvironmentSettings):
    """Tools in plain Python: functions (`tools`), or a class of an environment, or both."""

    adapter: ClassVar[str | None] = "rollout.envs.plain:PlainTasks"

    tools: tuple[str, ...] = ()
    """Functions that the model may call, as file.py:function or package.module:function. Their types and docstrings say
    what the model is told of them."""
    tool_timeout_s: float = Field(default=60.0, gt=0)
    """How long a call may take. Then the model is told so."""


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
