"""How far a run is: the numbers that a checkpoint keeps and summary.json reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self


@dataclass(slots=True)
class Progress:
    """`stage` is the stage under way (rl.stages), empty before the first, and `model` the directory or name of the
    model that it began with. `version` is the policy's: training starts from version 0, and every step adds one, even a
    step that had nothing to learn from.

    `mismatch_sum` is the sum of |engine logprob - trainer logprob| over the `mismatch_tokens` tokens that were sampled
    by the very version that was being trained. `eval_before` and `eval_after` are the evaluations before the first and
    after the last step, as `rl.observe.evaluation` gives them; their values are shares (0 to 1).
    """

    stage: str = ""
    model: str = ""
    step: int = 0
    version: int = 0
    wall_s: float = 0.0
    trained_tokens: int = 0
    staleness_max: int = 0
    mismatch_sum: float = 0.0
    mismatch_tokens: int = 0
    eval_before: dict[str, float] = field(default_factory=dict)
    eval_after: dict[str, float] = field(default_factory=dict)

    def add_step(self, stats: Mapping[str, float] | None, staleness_max: int) -> None:
        """Account for one step; `stats` are the learner's global sums, None when there was nothing to learn."""
        self.step += 1
        self.version += 1
        if stats is None:
            return
        self.trained_tokens += int(stats["tokens"])
        self.staleness_max = max(self.staleness_max, staleness_max)
        self.mismatch_sum += stats["mismatch"]
        self.mismatch_tokens += int(stats["fresh_tokens"])

    @property
    def mismatch_mean(self) -> float | None:
        return self.mismatch_sum / self.mismatch_tokens if self.mismatch_tokens else None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        return cls(**{f.name: values[f.name] for f in fields(cls)})
