"""The contract between an agent loop, an environment, a chat format and an inference engine.

An environment offers tools, answers what the model does and scores the end. It knows nothing of tokens; a chat format
knows nothing of environments. Whatever the policy can cause (an unknown tool, bad arguments, code that crashes) is an
ordinary observation. Any exception that an environment raises, except `EpisodeEnded`, is an infrastructure failure: the
attempt is retried and finally recorded as a failure, but never turned into a reward.

`Environment` and `EnvironmentSpec` are base classes. Methods that most environments do not need have a default.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from rewards.errors import InfrastructureError
from rollout.types import Completion, Message, SamplingParams, Split, Task, TokenIds

if TYPE_CHECKING:
    from pydantic import BaseModel

    from rewards.contracts import Hosted
    from rewards.sandbox.sandbox import Sandbox
    from rollout.envs.config import EnvironmentSettings

ToolSpec = dict[str, Any]
"""One function in OpenAI form: {"type": "function", "function": {"name", "description", "parameters"}}."""


class EpisodeEnded(Exception):
    """Raised by `Environment.call` or `reply` to end the episode. This is not a failure: the episode is then scored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """One tool call as the model wrote it. `arguments` are parsed, but not checked against a schema."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class AssistantTurn:
    """A parsed completion. `malformed` says what is wrong with one that could not be parsed, and is None otherwise."""

    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    malformed: str | None = None


@dataclass(frozen=True, slots=True)
class Observation:
    """A message that the environment shows the model after a turn. A plain string stands for one with only a text.

    A tool's result whose text begins with `error:` is counted as a tool error.
    """

    text: str
    reward: float | None = None
    """The reward of the turn that led here. Advantage estimators may use it; it is not part of the total reward."""
    state_key: str | None = None
    """The name of the state that the next turn is taken in. States with equal names can be compared."""


class Environment:
    """One episode of one task. It is made for that episode, closed after it and never shared."""

    tools: tuple[ToolSpec, ...] = ()
    """The tools that the model may call."""
    first_state_key: str | None = None
    """The name of the state that the first turn is taken in; see `Observation.state_key`."""

    async def call(self, call: ToolCall) -> str | Observation:
        """Return the result of one tool call.

        An unknown tool or bad arguments are the policy's fault, so the result is then an error text.
        """
        return f"error: unknown tool {call.name!r}; there are none"

    async def reply(self, turn: AssistantTurn) -> str | Observation | None:
        """Return the user message that follows a turn without tool calls, or None if the turn was the final answer."""
        return None

    async def score(self, answer: str | None) -> dict[str, float]:
        """Return the reward parts by name, any finite numbers.

        `answer` is the text of the last turn; None when the episode ended without an answer.
        """
        raise NotImplementedError("this environment has no rewards of its own: name some in tasks.sources.N.rewards")

    async def open(self, messages: Sequence[Message]) -> Sequence[Message]:
        """Begin the episode. Returns the messages that open the conversation: those of the task, or other ones."""
        return messages

    def final_state(self) -> Any:
        """Return the episode's final state as JSON values, for rewards that look at it."""
        return None

    def hosted(self) -> Hosted | None:
        """Where the environment lives, for rewards that look at it; None: in this process."""
        return None

    async def close(self) -> None:
        """Release everything. It is called exactly once, also after an exception or a cancellation."""


class EnvironmentSpec:
    """A family of tasks. It generates tasks and makes their episodes."""

    name: str = ""
    """The `Task.environment` of its tasks. Empty: the name in the recipe; of `file.py:attribute` only the attribute."""
    reward_parts: tuple[str, ...] = ()
    """The names of the parts that `Environment.score` returns. Weights and success rules of a recipe refer to them."""
    payload: type[BaseModel] | None = None
    """What the payload of a dataset's row must hold, in types; checked strictly before a run begins. Other fields are
    allowed unless the model forbids them. None: anything."""
    uses_sandbox: bool = False
    """Whether `make` needs a sandbox that isolates."""
    may_abstain: bool = False
    """Whether `Environment.score` may leave parts out, which then do not apply to the episode."""

    def __init__(self, settings: EnvironmentSettings) -> None:
        self.settings = settings
        self.name = self.name or settings.name.rpartition(":")[2]

    def generate(self, index: int, seed: int, split: Split) -> Task:
        """Return task `index` of a split, as a pure function of the arguments. No task may be in both splits."""
        raise NotImplementedError(f"environment {self.name!r} generates no tasks: set tasks.sources.N.dataset")

    def make(self, task: Task, sandbox: Sandbox) -> Environment:
        """Make an episode of `task`."""
        raise NotImplementedError

    def vote(self, answer: str) -> str | None:
        """What an answer says, as a text that is equal for answers that say the same; None for nothing. Evaluations
        count it (maj@k)."""
        return " ".join(answer.split()) or None


@runtime_checkable
class Demonstrator(Protocol):
    """An additional method of an `EnvironmentSpec` whose tasks a scripted oracle can solve."""

    def demonstrate(self, task: Task, rng: random.Random) -> list[Message]:
        """Return a conversation for the supervised stage to learn from. It begins with `task.messages`.

        The conversation need not solve the task.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """A conversation up to now, for chat formats that cannot go on from its tokens alone.

    `messages` are those that opened it and all since. A turn that the policy sampled is an assistant message that has
    its tokens, as sampled, under `token_ids`, and nothing else.
    """

    messages: Sequence[Message] = ()
    tools: Sequence[ToolSpec] = ()


NOTHING_SAID = History()


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuation:
    """The tokens with which a conversation goes on after new messages.

    If `kind` is `extension`, `token_ids` are appended to the tokens so far. If it is `fork`, they are the whole new
    prompt, because the format edits the history (drops the reasoning of earlier turns, say).
    """

    kind: Literal["extension", "fork"]
    token_ids: list[int]
    broken: bool = False
    """Whether it is a fork only because a rendering of the conversation did not begin with the tokens so far. That is
    correct, but its prompt is computed again, and it is counted as `tokens/bridge_breaks`."""


class Chat(Protocol):
    """A chat format over a tokenizer. The only place where text becomes tokens or tokens become text.

    It keeps no state between calls, so one serves any number of agent loops. `thinking` chooses between a model's two
    modes; every call about one conversation gets the same value.
    """

    @property
    def stop_token_ids(self) -> tuple[int, ...]: ...

    def open(self, messages: Sequence[Message], tools: Sequence[ToolSpec], thinking: bool) -> list[int]:
        """Return the tokens of the first prompt, which end where the assistant begins to speak."""
        ...

    def parse(self, token_ids: Sequence[int], tools: Sequence[ToolSpec]) -> AssistantTurn:
        """Parse one completion. Arguments are typed by the schemas of `tools`."""
        ...

    def bridge(
        self, token_ids: TokenIds, messages: Sequence[Message], thinking: bool, history: History
    ) -> Continuation:
        """Return the tokens that show tool results or user messages and let the assistant speak next.

        They follow `token_ids`, which are the prompt and everything after it. Sampled tokens are never decoded and
        encoded again, unless as a fork's history, which is not trained. `history` says the same as `token_ids`, as
        messages.

        Raises:
            ValueError: the format cannot go on from these tokens.
        """
        ...

    def say(self, message: Message, thinking: bool) -> list[int]:
        """Return the tokens that an assistant samples to say `message`, including the token that ends its turn."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of tokens, special ones included. It is for people to read, never to encode again."""
        ...


class EngineError(InfrastructureError):
    """The engine could not do what was asked: not ready, aborted, deadline missed. The policy is not to blame."""


class EngineDeadError(EngineError):
    """The engine has died or was shut down; every call fails with the cause. Only a new one helps."""


class Superseded(EngineError):
    """The engine gave up a request in favour of newer weights: what it sampled could not be trained any more. That is
    no failure; the trajectory starts over with the newest weights."""


class Engine(Protocol):
    """A source of completions. Any exception that it raises is an infrastructure failure."""

    async def generate(self, request_id: str, prompt_token_ids: TokenIds, sampling: SamplingParams) -> Completion: ...
