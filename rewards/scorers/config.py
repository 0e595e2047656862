"""The entries of a recipe's `tasks.sources.N.rewards`."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from rewards.strict import Named

RUBRIC = """How well does the last reply fulfil what was asked?

{low}: not at all. {high}: completely."""


class RewardSettings(Named):
    """The base of every reward's settings. The name `environment` means the rewards of the environment itself."""

    kind: ClassVar[str] = "reward"

    @classmethod
    def settings_of(cls, code: Any) -> type[Named]:
        """A function is a reward in the signature of TRL's; a class is a `rewards.contracts.Reward`."""
        if callable(code) and not isinstance(code, type) and not hasattr(code, "Settings"):
            return FunctionSettings
        return super().settings_of(code)

    def shared_by(self, workers: int) -> RewardSettings:
        """The settings of each of so many workers, which share what they may ask of somebody else."""
        return self


class FunctionSettings(RewardSettings):
    """A reward function, which runs in a process of its own."""

    adapter: ClassVar[str | None] = "rewards.scorers.function:FunctionReward"
    target: ClassVar[str | None] = None
    """The `module:attribute` of what makes the function from these settings; None: the name is that of the function."""

    part: str | None = None
    """The name of the reward part; null: that of the function."""
    deadline_s: float = Field(default=60.0, gt=0)
    """How long it may take to score one completion. Then its process is ended, and the trajectory is tried again."""
    processes: int = Field(default=1, ge=1)
    """Processes for it in each rollout worker. One that is not asynchronous scores one completion at a time in each."""
    concurrency: int = Field(default=64, ge=1)
    """Completions that one process scores at the same time, if the function is asynchronous."""
    whole_group: bool = False
    """Whether it is called once for all attempts at a task, when the last of them has ended, and so can compare them;
    else for each attempt as it ends."""
    completions: Literal["messages", "text"] = "messages"
    """What it gets as a completion: the messages after the prompt, or the text of the last reply."""

    @property
    def part_name(self) -> str:
        return self.part or self.name.rpartition(":")[2]

    @property
    def call_deadline_s(self) -> float | None:
        """The deadline that the process itself sets a call; None where the called code sets one."""
        return self.deadline_s

    @property
    def longest_s(self) -> float:
        """How long a call may take with all its waiting."""
        return self.deadline_s


class RemoteSettings(FunctionSettings):
    """A reward that somebody else computes."""

    deadline_s: float = Field(default=180.0, gt=0)
    """How long one completion may take, all tries together, without the wait for its turn."""
    timeout_s: float = Field(default=60.0, gt=0)
    """How long one request may take."""
    retries: int = Field(default=3, ge=0)
    """Requests that are made again after an error, a timeout or an answer that says nothing."""
    requests_per_minute: float | None = Field(default=None, gt=0)
    """At most so many requests of all workers together; null: any number."""
    api_key_env: str | None = None
    """The environment variable with the key that requests carry as a bearer token; null: none."""

    @model_validator(mode="after")
    def _scores_each(self) -> RemoteSettings:
        if self.whole_group:
            raise ValueError("whole_group is for functions; this reward looks at one attempt at a time")
        return self

    @property
    def call_deadline_s(self) -> float | None:
        return None

    @property
    def longest_s(self) -> float:
        waits = 0.0 if self.requests_per_minute is None else 60.0 * self.concurrency / self.requests_per_minute
        return self.deadline_s + waits * (self.retries + 1)

    def shared_by(self, workers: int) -> RewardSettings:
        if self.requests_per_minute is None:
            return self
        rate = self.requests_per_minute / (workers * self.processes)
        return self.model_copy(update={"requests_per_minute": rate})


class JudgeSettings(RemoteSettings):
    """A language model behind an OpenAI-compatible endpoint that grades the conversation."""

    target: ClassVar[str | None] = "rewards.scorers.judge:Judge"

    base_url: str
    """The endpoint, as in http://host:8000/v1."""
    model: str
    rubric: str = RUBRIC
    """What is graded, and what the grades mean. It may use {low} and {high}, and columns of the row by their names."""
    low: float = 0.0
    """The grade that becomes the reward 0."""
    high: float = 10.0
    """The grade that becomes the reward 1."""
    max_tokens: int = Field(default=1024, ge=1)
    """Tokens of a reply, in which the grade comes last."""
    temperature: float = Field(default=0.0, ge=0)
    usd_per_million_input: float = Field(default=0.0, ge=0)
    """The price of a million tokens that the judge reads, for `reward/cost_usd`."""
    usd_per_million_output: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _has_a_range(self) -> JudgeSettings:
        if self.low >= self.high:
            raise ValueError(f"low={self.low:g} must be below high={self.high:g}")
        return self


class HttpSettings(RemoteSettings):
    """A service that gets prompts, completions and columns as JSON, and answers with a list of rewards."""

    target: ClassVar[str | None] = "rewards.scorers.http:HttpReward"

    url: str
