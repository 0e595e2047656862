"""The contract between an agent loop, an environment, a chat format and an inference engine.

An environment offers tools, answers what the model does and scores the end. It knows nothing of tokens; a chat format
knows nothing of environments. Whatever the policy can cause (an unknown tool, bad arguments, code that crashes) is an
ordinary observation; anything an environment *raises* is taken as an infrastructure failure: retried, then data, never
a reward.

`Environment` and `EnvironmentSpec` are meant to be derived from: what most environments do not need has a default.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from rollout.types import Completion, Message, SamplingParams, Split, Task

if TYPE_CHECKING:
    from rewards.sandbox.sandbox import Sandbox
    from rollout.envs.config import EnvironmentSettings

ToolSpec = dict[str, Any]
"""One function in OpenAI form: {"type": "function", "function": {"name", "description", "parameters"}}."""


class EpisodeEnded(Exception):
    """Raised by `Environment.call` or `reply` when nothing more can be done: the loop stops there and scores. Not a
    failure."""


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


@dataclass(frozen=True, slots=True)
class Observation:
    """What the model is shown after it acted. A plain string in its place is an observation with nothing but a text.

    A text that begins with `error:` is counted as a tool error.
    """

    text: str
    reward: float | None = None
    """What the turn that led here earned by itself; it is an estimator's to use, and no part of the total reward."""
    state_key: str | None = None
    """The name of the state that the next turn is taken in; equal names mean states that can be compared."""


class Environment:
    """One episode of one task. Made for it, closed after it, never shared."""

    tools: tuple[ToolSpec, ...] = ()
    """What the model may call."""
    first_state_key: str | None = None
    """The name of the state that the first turn is taken in; see `Observation.state_key`."""

    async def call(self, call: ToolCall) -> str | Observation:
        """The result of one tool call. An unknown tool or bad arguments are the policy's fault: an error text."""
        return f"error: unknown tool {call.name!r}; there are none"

    async def reply(self, turn: AssistantTurn) -> str | Observation | None:
        """What follows a turn that calls no tool, said as the user; None: nothing, the turn was the answer."""
        return None

    async def score(self, answer: str | None) -> dict[str, float]:
        """Reward parts by name, any finite numbers. `answer` is the text of the last turn; None when there was none."""
        raise NotImplementedError("this environment has no rewards of its own: name some in tasks.sources.N.rewards")

    def final_state(self) -> Any:
        """What the episode has come to, as JSON values, for rewards that look at it."""
        return None

    async def close(self) -> None:
        """Release everything. Called exactly once, also after an exception or a cancellation."""


class EnvironmentSpec:
    """One family of tasks: where they come from, and how an episode is made."""

    name: str = ""
    """What tasks carry as their environment; empty: what stands behind the colon of the recipe's name for it."""
    reward_parts: tuple[str, ...] = ()
    """The names of the parts that `Environment.score` returns: what weights and success rules may name."""
    uses_sandbox: bool = False
    """Whether `make` needs a sandbox that isolates."""

    def __init__(self, settings: EnvironmentSettings) -> None:
        self.settings = settings
        self.name = self.name or settings.name.rpartition(":")[2]

    def generate(self, index: int, seed: int, split: Split) -> Task:
        """Task `index` of a split: a pure function of its arguments. No task is in both splits."""
        raise NotImplementedError(f"environment {self.name!r} generates no tasks: set tasks.sources.N.dataset")

    def make(self, task: Task, sandbox: Sandbox) -> Environment:
        """An episode of `task`."""
        raise NotImplementedError


@runtime_checkable
class Demonstrator(Protocol):
    """What an environment's specification offers beside, where a scripted oracle can solve its tasks."""

    def demonstrate(self, task: Task, rng: random.Random) -> list[Message]:
        """A conversation, `task.messages` first, that the supervised stage learns from. Need not be a success."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuation:
    """How a conversation goes on after new messages.

    kind `extension`: `token_ids` are appended to what was there. `fork`: they are the whole new prompt, because the
    format edits what came before (it drops the reasoning of answered turns, say).
    """

    kind: Literal["extension", "fork"]
    token_ids: list[int]


class Chat(Protocol):
    """A chat format over a tokenizer. The only place where text becomes tokens or tokens become text.

    Stateless between calls: one serves any number of agent loops. `thinking` chooses between a model's two modes; every
    call about one conversation gets the same value.
    """

    @property
    def stop_token_ids(self) -> tuple[int, ...]: ...

    def open(self, messages: Sequence[Message], tools: Sequence[ToolSpec], thinking: bool) -> list[int]:
        """The first prompt, ending where the assistant begins to speak."""
        ...

    def parse(self, token_ids: Sequence[int], tools: Sequence[ToolSpec]) -> AssistantTurn:
        """What one completion says; arguments are typed by the schemas of `tools`."""
        ...

    def bridge(self, token_ids: Sequence[int], messages: Sequence[Message], thinking: bool) -> Continuation:
        """Show messages of tools or of the user after `token_ids` (prompt and all that was sampled), and let the
        assistant speak next. What was sampled is never decoded and encoded again.

        Raises:
            ValueError: the format cannot go on from these tokens.
        """
        ...

    def say(self, message: Message, thinking: bool) -> list[int]:
        """What an assistant samples to say `message`, up to and with the token that ends its turn."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of tokens, special ones included; for people to read, never to encode again."""
        ...


class Engine(Protocol):
    """Where completions come from. Any exception it raises is an infrastructure failure."""

    async def generate(self, request_id: str, prompt_token_ids: list[int], sampling: SamplingParams) -> Completion: ...
