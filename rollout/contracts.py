"""The contract between an agent loop, an environment, a chat format and an inference engine.

An environment offers tools, answers calls with text and scores the end. It knows nothing of tokens; a chat format
knows nothing of environments. Whatever the policy can cause (an unknown tool, bad arguments, code that crashes) is an
ordinary observation; anything an environment *raises* is taken as an infrastructure failure: retried, then data, never
a reward.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from rollout.types import Completion, Message, SamplingParams, Split, Task

if TYPE_CHECKING:
    from rewards.sandbox.sandbox import Sandbox


ToolSpec = dict[str, Any]
"""One function in OpenAI form: {"type": "function", "function": {"name", "description", "parameters"}}."""


class EpisodeEnded(Exception):
    """Raised by `Environment.call` when nothing more can be done: the loop stops there and scores. Not a failure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """One call as the model wrote it; `arguments` is what its JSON parsed to and is not checked against a schema."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class AssistantTurn:
    """What one completion parsed to. `malformed` says what is wrong with a tool call that could not be parsed."""

    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    malformed: str | None = None


class Environment(Protocol):
    """One episode of one task. Made for it, closed after it, never shared."""

    @property
    def tools(self) -> tuple[ToolSpec, ...]: ...

    async def call(self, call: ToolCall) -> str:
        """The observation the model reads. An unknown tool or bad arguments are the policy's fault: an error text,
        which begins with `error:` (that is how tool errors are counted).
        """
        ...

    async def score(self, answer: str | None) -> dict[str, float]:
        """Reward parts by name, each from 0 to 1. `answer` is the text of the last turn; None when there was none."""
        ...

    async def close(self) -> None:
        """Release everything. Called exactly once, also after an exception or a cancellation."""
        ...


class EnvironmentSpec(Protocol):
    """One family of tasks: where they come from, how an oracle solves them, and how an episode is made."""

    @property
    def name(self) -> str: ...

    @property
    def reward_parts(self) -> tuple[str, ...]:
        """The names of the parts that `Environment.score` returns: what `rewards.weights` may name."""
        ...

    def generate(self, index: int, seed: int, split: Split) -> Task:
        """Task `index` of a split: a pure function of its arguments. No task is in both splits."""
        ...

    def demonstrate(self, task: Task, rng: random.Random) -> list[Message]:
        """A conversation, `task.messages` first, that the supervised cold start learns from. Need not be a success."""
        ...

    def make(self, task: Task, sandbox: Sandbox) -> Environment: ...


class Chat(Protocol):
    """A chat format over a tokenizer. The only place where text becomes tokens or tokens become text."""

    @property
    def stop_token_ids(self) -> tuple[int, ...]: ...

    def open(self, messages: Sequence[Message], tools: Sequence[ToolSpec], thinking: bool) -> list[int]:
        """The first prompt, ending where the assistant begins to speak."""
        ...

    def parse(self, token_ids: Sequence[int], tools: Sequence[ToolSpec]) -> AssistantTurn:
        """What one completion says; arguments are typed by the schemas of `tools`."""
        ...

    def bridge(self, token_ids: Sequence[int], tool_results: Sequence[str]) -> list[int]:
        """The tokens to append after `token_ids` (prompt and all that was sampled) so that the tool results are shown
        and the assistant speaks next. The extension only; raises ValueError where it would not be an exact extension.
        """
        ...


class Engine(Protocol):
    """Where completions come from. Any exception it raises is an infrastructure failure."""

    async def generate(self, request_id: str, prompt_token_ids: list[int], sampling: SamplingParams) -> Completion: ...
