"""The recipe's `sft:` section."""

from __future__ import annotations

from pydantic import Field, model_validator

from rewards.strict import StrictModel
from rl.learner.config import OptimizerConfig
from rollout.tasks.config import DatasetConfig

ORACLE = "oracle"
"""Stands for a dataset: demonstrations in the recipe's environments, made by the environments' scripted oracles."""


class MixedDataset(StrictModel):
    """One dataset of a mixture."""

    dataset: DatasetConfig
    weight: float = Field(default=1.0, gt=0)
    """The dataset's share of the demonstrations is its weight divided by the sum of all weights."""


class SftConfig(StrictModel):
    """A supervised stage before reinforcement learning. Its result is cached by content hash."""

    dataset: DatasetConfig | None = None
    """Demonstrations: rows with `messages` (and `tools`), or `prompt` and `completion`. `oracle` stands for what the
    environments' scripted oracles show."""
    mixture: tuple[MixedDataset, ...] = ()
    """Several datasets in the place of one. They take turns by weight; one that is used up begins again, until each has
    been used up or there are `rows`."""
    rows: int = Field(default=2000, ge=1)
    """At most this many demonstrations. When all have been trained, they are repeated in another order."""
    steps: int = Field(default=100, ge=1)
    tokens_per_step: int = Field(default=8192, ge=16)
    """A step takes whole demonstrations until it has this many tokens."""
    optimizer: OptimizerConfig

    @model_validator(mode="after")
    def _has_demonstrations(self) -> SftConfig:
        if (self.dataset is None) == (not self.mixture):
            raise ValueError("demonstrations come from `dataset` or from `mixture`: give one of them")
        if any(one.dataset.path == ORACLE for one in self.mixture):
            raise ValueError(f"{ORACLE} stands alone: write it as the `dataset`, or name datasets in the mixture")
        return self

    @property
    def shown_by_oracle(self) -> bool:
        """Whether the environments' oracles show what is learnt, and no dataset does."""
        return self.dataset is not None and self.dataset.path == ORACLE

    @property
    def datasets(self) -> tuple[MixedDataset, ...]:
        """The datasets with their weights; none where oracles show what is learnt."""
        if self.dataset is None or self.shown_by_oracle:
            return self.mixture
        return (MixedDataset(dataset=self.dataset),)
