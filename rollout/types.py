"""The data that moves between the parts of Sluice: frozen, slotted, keyword-only dataclasses.

Nothing here imports torch, vllm or ray: every algorithm, environment, reward and buffer rule is testable with these
plain objects. Only `rollout.agent.stream.TokenStream` builds a `Sample`, so mask, logprob and version have one writer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Split = Literal["train", "eval"]
"""Which tasks: those that are trained on, or those that are held out for evaluation."""

Device = Literal["cpu", "cuda"]
"""Where a run's trainers and engines compute."""

DTYPE_BYTES: Mapping[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
"""The types that weights travel in, by torch's name without its prefix, and the bytes of an element."""

Message = dict[str, Any]
"""One chat message in OpenAI form: role, content, and for an assistant optionally reasoning_content and tool_calls."""

FinishReason = Literal["stop", "length", "abort"]

StopReason = Literal["answered", "turn_limit", "token_limit", "time_limit", "malformed", "environment", "aborted"]
"""Why an agent loop ended.

answered: the model replied, and its environment had nothing to add.  turn_limit: it used up its turns.  token_limit:
the context or the per-turn budget is full.  time_limit: its tool calls used up the time.  malformed: a tool call could
not be parsed.  environment: the environment ended the episode.  aborted: we ended it (shutdown or an infrastructure
failure).
"""

Outcome = Literal["scored", "truncated", "infra_error"]
"""scored and truncated trajectories are trained; an infra_error leaves both the loss and the group's baseline."""

OBSERVED = -1
"""The version written beside a token that no policy sampled (prompt, tool result)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One thing to do: what the model is asked, and what its environment needs to judge it.

    `payload` is the environment's own business (initial state, tests, goal); it must be JSON. `source` is the label of
    the recipe's task source that it came from; the task stream writes it.
    """

    id: str
    environment: str
    source: str = ""
    messages: tuple[Message, ...]
    payload: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Everything the engine is told about sampling; nothing is left to a default of the engine's.

    The training path accepts only what the trainer can mirror: top_p=1, top_k=0 (off), any temperature > 0. A
    temperature of 0 is greedy.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int
    stop_token_ids: tuple[int, ...] = ()
    seed: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What the engine sampled for one prompt. The three per-token tuples have equal length.

    `logprobs` are natural logs under the distribution sampled from (after temperature); `versions[i]` is the policy
    version whose weights sampled token i. A stop token that was sampled is included.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    versions: tuple[int, ...]
    finish_reason: FinishReason

    def __post_init__(self) -> None:
        if not len(self.token_ids) == len(self.logprobs) == len(self.versions):
            raise ValueError(
                f"a completion's lists differ in length: {len(self.token_ids)} tokens, "
                f"{len(self.logprobs)} logprobs, {len(self.versions)} versions"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One linear token stream exactly as the model saw it.

    Four tuples of equal length L: `loss_mask` is 1 where the policy sampled the token, else 0; `logprobs` is the
    behaviour policy's logprob there and 0.0 elsewhere; `versions` is the policy version there and OBSERVED elsewhere.
    """

    token_ids: tuple[int, ...]
    loss_mask: tuple[int, ...]
    logprobs: tuple[float, ...]
    versions: tuple[int, ...]

    def __post_init__(self) -> None:
        length = len(self.token_ids)
        if not length == len(self.loss_mask) == len(self.logprobs) == len(self.versions):
            raise ValueError(
                f"a sample's lists differ in length: {length} tokens, {len(self.loss_mask)} mask, "
                f"{len(self.logprobs)} logprobs, {len(self.versions)} versions"
            )
        for position, (mask, version) in enumerate(zip(self.loss_mask, self.versions, strict=True)):
            if (mask == 1) != (version != OBSERVED):
                raise ValueError(f"position {position}: mask {mask} disagrees with version {version}")

    @property
    def trained_tokens(self) -> int:
        return sum(self.loss_mask)

    def oldest_version(self) -> int | None:
        """The smallest policy version among sampled tokens; None when nothing was sampled."""
        return min((v for v in self.versions if v != OBSERVED), default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What the policy sampled in one go: positions start to stop (exclusive) of a trajectory's sample number `sample`.

    `reward` is what the environment gave for this turn alone, None where it gives none. `state_key` names the state
    that the turn was taken in, for estimators that compare turns of one state; None where the environment names none.
    """

    sample: int
    start: int
    stop: int
    reward: float | None = None
    state_key: str | None = None

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A timed stage of a trajectory (`generate`, `environment`, `reward`), in seconds on the monotonic clock."""

    name: str
    start: float
    end: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """One attempt at a task. `reward` and `success` are None exactly when `outcome` is infra_error; `error` then says
    what failed.

    A history that is edited (reasoning stripped, say) goes on in a new sample, in which all that came before is
    observed: every sampled token is trained in exactly one sample, the one that it was sampled in.
    """

    task_id: str
    group_id: str
    samples: tuple[Sample, ...]
    messages: tuple[Message, ...]
    stop_reason: StopReason
    outcome: Outcome
    reward: float | None
    success: bool | None = None
    reward_parts: Mapping[str, float] = field(default_factory=dict)
    turns: tuple[Turn, ...] = ()
    error: str | None = None
    spans: tuple[Span, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in (("reward", self.reward), ("success", self.success)):
            if (value is None) != (self.outcome == "infra_error"):
                raise ValueError(f"outcome {self.outcome!r} with {name} {value!r}: a failure is data, never a reward")


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The trajectories of one issued task that are compared with each other. `id` is the ledger's issue id."""

    id: str
    task: Task
    trajectories: tuple[Trajectory, ...]

    @property
    def usable(self) -> tuple[Trajectory, ...]:
        """The members that may be trained and that form the baseline: everything but infrastructure failures."""
        return tuple(t for t in self.trajectories if t.outcome != "infra_error")

    def oldest_version(self) -> int | None:
        versions = [s.oldest_version() for t in self.usable for s in t.samples]
        return min((v for v in versions if v is not None), default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightSpec:
    """One tensor of the policy under its Hugging Face checkpoint name: what the trainer sends and the engine expects.

    `dtype` is the torch name without prefix (`float32`, `bfloat16`), `shape` the full one.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]
