"""The data that moves between the parts of Sluice: frozen, slotted, keyword-only dataclasses.

Nothing here imports torch, vllm or ray: every algorithm, environment, reward and buffer rule is testable with these
plain objects. Only `rollout.agent.stream.TokenStream` builds a new `Sample`, so mask, logprob and version have one
writer. (`rollout.store.groups` reads saved samples back.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Split = Literal["train", "eval"]
"""The tasks that are trained on, or those that are held out for evaluation."""

Device = Literal["cpu", "cuda"]
"""The device that a run's trainers and engines compute on."""

Placement = Literal["split", "colocated"]
"""Whether trainer and engines have devices of their own, or take turns on the same ones."""

DTYPE_BYTES: Mapping[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes per element of each dtype that weights may travel in. Keys are torch's names without the prefix `torch.`."""

Message = dict[str, Any]
"""One chat message in OpenAI form: role, content, and for an assistant optionally reasoning_content and tool_calls."""

FinishReason = Literal["stop", "length", "abort"]

StopReason = Literal["answered", "turn_limit", "token_limit", "time_limit", "malformed", "environment", "aborted"]
"""The reason why an agent loop ended.

answered: the model replied, and its environment had nothing to add.  turn_limit: it used up its turns.  token_limit:
the context or the per-turn budget is full.  time_limit: its tool calls used up the time.  malformed: a turn could not
be parsed, or the chat format cannot continue after it.  environment: the environment ended the episode.  aborted: an
infrastructure failure ended the last try.
"""

Outcome = Literal["scored", "truncated", "infra_error"]
"""`scored` and `truncated` trajectories are trained. An `infra_error` is left out of the loss and of the baseline."""

OBSERVED = -1
"""The version of a token that no policy sampled (prompt, tool result)."""

SAMPLE_DTYPES: Mapping[str, type[np.generic]] = {
    "token_ids": np.int32,
    "loss_mask": np.uint8,
    "logprobs": np.float32,
    "versions": np.int32,
}
"""The arrays of a `Sample` and their types."""

TOKEN_BYTES = sum(np.dtype(dtype).itemsize for dtype in SAMPLE_DTYPES.values())
"""Bytes of a token in a `Sample`."""

TokenIds = Sequence[int] | npt.NDArray[np.int32]
"""Token ids as a plain list, or as the view of a stream that grows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One task: the messages that the model is asked, and the data that its environment and rewards need.

    `payload` is read by the environment and the rewards only (initial state, tests, goal) and must be JSON. `source` is
    the label of the task source in the recipe; the task stream sets it.
    """

    id: str
    environment: str
    source: str = ""
    messages: tuple[Message, ...]
    payload: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """All sampling settings of a request; the engine's own defaults are never used.

    The training path accepts only what the trainer can mirror: top_p=1, top_k=0 (off), any temperature > 0. A
    temperature of 0 is greedy.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int
    stop_token_ids: tuple[int, ...] = ()
    seed: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Completion:
    """The tokens that the engine sampled for one prompt, with a logprob and a version for each. Sequences of numbers
    become arrays.

    `logprobs` are natural logs under the distribution sampled from (after temperature); `versions[i]` is the policy
    version whose weights sampled token i. A stop token that was sampled is included.
    """

    token_ids: tuple[int, ...]
    logprobs: npt.NDArray[np.float32]
    versions: npt.NDArray[np.int32]
    finish_reason: FinishReason

    def __post_init__(self) -> None:
        for name in ("logprobs", "versions"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), SAMPLE_DTYPES[name]))
        if not len(self.token_ids) == len(self.logprobs) == len(self.versions):
            raise ValueError(
                f"a completion's lists differ in length: {len(self.token_ids)} tokens, "
                f"{len(self.logprobs)} logprobs, {len(self.versions)} versions"
            )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """One linear token stream exactly as the model saw it, in 13 bytes a token.

    Four arrays [L], which the sample takes over and makes read-only. `loss_mask` is 1 where the policy sampled the
    token, else 0; `logprobs` is the behaviour policy's logprob there and 0.0 elsewhere; `versions` is the policy
    version there and OBSERVED elsewhere.

    Raises:
        ValueError: an array has another dtype or shape than the others, or mask and version disagree.
    """

    token_ids: npt.NDArray[np.int32]
    loss_mask: npt.NDArray[np.uint8]
    logprobs: npt.NDArray[np.float32]
    versions: npt.NDArray[np.int32]

    def __post_init__(self) -> None:
        for name, dtype in SAMPLE_DTYPES.items():
            array = getattr(self, name)
            if array.dtype != dtype or array.shape != (len(self.token_ids),):
                raise ValueError(
                    f"a sample's {name} are {array.dtype} {array.shape}, expected {np.dtype(dtype)} "
                    f"({len(self.token_ids)},) like its token_ids"
                )
            array.flags.writeable = False
        wrong = np.flatnonzero(self.loss_mask != (self.versions != OBSERVED))
        if wrong.size:
            mask, version = self.loss_mask[wrong[0]], self.versions[wrong[0]]
            raise ValueError(f"position {wrong[0]}: mask {mask} disagrees with version {version}")

    def __len__(self) -> int:
        return len(self.token_ids)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sample):
            return NotImplemented
        return all(np.array_equal(getattr(self, name), getattr(other, name)) for name in SAMPLE_DTYPES)

    @property
    def trained_tokens(self) -> int:
        return int(np.count_nonzero(self.loss_mask))

    def sampled_versions(self) -> npt.NDArray[np.int32]:
        """The policy versions of the sampled tokens, in order."""
        return self.versions[self.versions != OBSERVED]

    def oldest_version(self) -> int | None:
        """The smallest policy version among sampled tokens; None when nothing was sampled."""
        versions = self.sampled_versions()
        return int(versions.min()) if versions.size else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """The tokens that the policy sampled in one turn: `start` to `stop` (exclusive) of sample number `sample`, at
    `temperature`.

    `reward` is the environment's reward for this turn alone, None where it gives none. `state_key` names the state that
    the turn was taken in, for advantage estimators that compare turns of one state; None where the environment names
    none.
    """

    sample: int
    start: int
    stop: int
    temperature: float = 1.0
    reward: float | None = None
    state_key: str | None = None

    def __post_init__(self) -> None:
        _require_finite("the reward of a turn", self.reward)

    def __len__(self) -> int:
        return self.stop - self.start


def _require_finite(what: str, value: object) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool | np.generic)
    if value is not None and not (number and math.isfinite(value)):  # type: ignore[arg-type]
        raise ValueError(f"{what} is {value!r:.100}, which is no finite Python number")


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A timed stage of a trajectory (`generate`, `environment`, `reward`), in seconds since 1970 by `rollout.clock`."""

    name: str
    start: float
    end: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """One attempt at a task. `reward` and `success` are None exactly when `outcome` is infra_error; `error` then says
    what failed. Rewards are finite Python numbers.

    When the chat format edits the history (strips its reasoning, say), the trajectory goes on in a new sample. There
    the edited history counts as observed, so every sampled token is trained once, in the sample that it was sampled in.
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
        _require_finite("the reward of a trajectory", self.reward)
        for name, value in self.reward_parts.items():
            _require_finite(f"reward part {name!r}", value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The trajectories of one issued task, which are compared with each other.

    `id` is the ledger's issue id; for an evaluation the driver makes one up.
    """

    id: str
    task: Task
    trajectories: tuple[Trajectory, ...]

    @property
    def usable(self) -> tuple[Trajectory, ...]:
        """The members that are trained and form the baseline: all but infrastructure failures."""
        return tuple(t for t in self.trajectories if t.outcome != "infra_error")

    def oldest_version(self) -> int | None:
        versions = [s.oldest_version() for t in self.usable for s in t.samples]
        return min((v for v in versions if v is not None), default=None)


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Address:
    """Where a group lies in the trajectory store: the number of its segment and that of its record there, from 0
    (`rollout.store.segments`). It stays valid when the segment is sealed."""

    segment: int
    record: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightSpec:
    """A tensor of the policy that the trainer sends and the engine expects, under its Hugging Face checkpoint name.

    `dtype` is the torch name without prefix (`float32`, `bfloat16`); `shape` is that of the full, gathered tensor.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]
